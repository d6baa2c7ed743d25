-- announce: write what happened to a run to its tenant's feed, and to the outbox if a webhook may have to be told.
--
-- Its text precedes that of each script that uses it. Called in the step in which it happens, and only if it does, so
-- nothing is told twice, and nothing that did not happen.
-- run: the run's record; that of its thread if the run's is gone.
-- to: outbox, bell and feed, the keys. feed is nil if the caller does not know the tenant. The outbox is written only if
-- the run has a webhook_url, or if a process that created or claimed it has webhooks configured (has_webhooks, in the
-- record or in to).
-- A feed's entry is published on a channel of the stream's name, in the format of shared/log/live_batch.py.
-- Damaged keys must not keep a run from its end: a feed of another type is left alone, an outbox is replaced.
-- happened: event (its name in the feed) and type (its name for webhooks), each nil for none; status, code, event_id,
-- attempt, call_id, at (Unix ms).
local FEED_MAX = 10000
local FEED_TTL_MS = 86400000
local OUTBOX_MAX = 100000
local BELLS_MAX = 64
local function announce(run, run_id, to, happened)
    local outbox, bell, feed = to.outbox, to.bell, to.feed
    local stored = redis.call('HMGET', run, 'tenant', 'user', 'thread_id', 'webhook_url', 'has_webhooks')
    local tenant, user, thread_id = stored[1] or '', stored[2] or '', stored[3] or ''
    local webhook_url, has_webhooks = stored[4] or '', stored[5] or to.has_webhooks
    local at = string.format('%d', happened.at)
    local function present(text)
        return text and text ~= '' and text or nil
    end
    local data = cjson.encode({run_id = run_id, thread_id = present(thread_id), user = present(user),
        status = happened.status, code = present(happened.code), call_id = present(happened.call_id),
        event_id = present(happened.event_id), at = happened.at})
    if feed and happened.event then
        local last = redis.pcall('XREVRANGE', feed, '+', '-', 'COUNT', 1)
        if not last.err then
            local before = last[1] and last[1][1] or '0-0'
            local last_ms, last_number = string.match(before, '^(%d+)-(%d+)$')
            -- Numbers begin with 1, as the sequences in cursors do, and ids grow even if the clock does not.
            local id = at .. '-1'
            if tonumber(last_ms) >= happened.at then
                id = last_ms .. '-' .. string.format('%d', last_number + 1)
            end
            redis.call('XADD', feed, 'MAXLEN', '~', FEED_MAX, id, 'event', happened.event, 'data', data)
            redis.call('PEXPIRE', feed, FEED_TTL_MS)
            redis.call('PUBLISH', feed, before .. ' ' .. id .. ' - feed:1\nid: ' .. id .. '\nevent: '
                .. happened.event .. '\ndata: ' .. data .. '\n\n')
        end
    end
    if outbox and happened.type and (has_webhooks == '1' or webhook_url ~= '') then
        local sequence = string.match(happened.event_id or '', '-(%d+)$') or '0'
        local message = run_id .. '_' .. happened.attempt .. '_' .. sequence .. '_' .. happened.type
        local entry = {outbox, 'MAXLEN', '~', OUTBOX_MAX, '*', 'message', message, 'type', happened.type,
            'tenant', tenant, 'webhook_url', webhook_url, 'data', data}
        local added = redis.pcall('XADD', unpack(entry))
        if type(added) == 'table' and added.err then
            redis.call('DEL', outbox)
            redis.call('XADD', unpack(entry))
        end
        redis.pcall('RPUSH', bell, '1')
        redis.pcall('LTRIM', bell, -BELLS_MAX, -1)
    end
end
