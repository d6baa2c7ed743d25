-- append: put a batch of events at the end of a run's log, if the attempt still owns the run.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] live     channel  keys.live
-- KEYS[3] stages   list     keys.stages
-- KEYS[4] items    hash     keys.model_items
-- KEYS[5..] streams         keys.stage_stream; with a terminal event every stream of the run. If the batch has an event
--                           that others are told of: then keys.outbox, keys.outbox_bell and, if known, keys.feed. With
--                           the terminal event of a run in a conversation: then the thread's keys (include/thread.lua)
-- ARGV[1] attempt  int      from claim
-- ARGV[2] before   id       the log's last id before the batch
-- ARGV[3] message  bytes    the batch for the live channel, see shared/log/live_batch.py
-- ARGV[4] end      json     what a terminal event sets, else '': status, error, usage and finish_reason for the record,
--                            and retention_ms, the TTL of the log's keys from then on. If others are told: run_id, and
--                            told, how many of KEYS follow the streams. Of a run in a conversation: thread, see ThreadEnd
-- ARGV[5] tokens   int      the tokens that the run has used so far, over all attempts; '': unchanged
-- ARGV[6] items    json     the model items of the batch's last event, else ''
-- ARGV[7..] the stage id of each stream in KEYS, then for each event: number of its stream, name, data
-- Returns {'ok', last_id, cancel}, {'behind', last_id}, {'fenced', attempt} or {'ended'}; {'fenced', 'thread'} if the run is
-- in a thread whose keys are not given.
--
-- Safe to repeat: events that are in the log already are skipped, since the producer sends a batch again
-- when our reply was lost.
-- The end of a run and the start of the next one in its thread are one step, so a reader that has the terminal event finds
-- either that run active or none. No process may end a run past its thread, which would stay busy.
-- Before the end no key has a TTL. The record gets its TTL from account, which needs it.
local run, live, stages, items, streams_and_others = KEYS[1], KEYS[2], KEYS[3], KEYS[4], {unpack(KEYS, 5)}
local attempt, before_id, message = ARGV[1], ARGV[2], ARGV[3]
local end_json, tokens, items_json, stage_ids_and_events = ARGV[4], ARGV[5], ARGV[6], {unpack(ARGV, 7)}

local extra = end_json ~= '' and cjson.decode(end_json)
local last = extra and extra.status and extra
local told = extra and extra.told or 0
local streams = {unpack(streams_and_others, 1, #streams_and_others - told - (last and last.thread and THREAD_KEYS or 0))}
local outbox, bell, feed = unpack(streams_and_others, #streams + 1, #streams + told)
local stage_ids, events = {unpack(stage_ids_and_events, 1, #streams)}, {unpack(stage_ids_and_events, 1 + #streams)}
local stored = redis.call('HMGET', run, 'attempt', 'last_id', 'cancel', 'finished_at')
local stored_attempt, stored_last_id, cancel, finished_at = stored[1], stored[2], stored[3] or '0', stored[4]
if not stored_attempt then
    return {'ended'}
end
if stored_attempt ~= attempt then
    return {'fenced', stored_attempt}
end
local count = #events / 3
local before = tonumber(string.match(before_id, '-(%d+)$'))
local skip = 0
if stored_last_id ~= before_id then
    local last_attempt, last_sequence = string.match(stored_last_id, '^(%d+)-(%d+)$')
    skip = tonumber(last_sequence) - before
    if last_attempt ~= attempt or skip < 0 then
        return {'behind', stored_last_id}
    end
end
if skip >= count then
    return {'ok', stored_last_id, cancel}
end
if finished_at then
    return {'ended'}
end
if last and not last.thread and redis.call('HEXISTS', run, 'thread') == 1 then
    return {'fenced', 'thread'}
end
-- A stream that was lost is still in the list. Readers of a list with a duplicate would get its events twice.
local function list_stage(stage_id)
    for _, listed in ipairs(redis.call('LRANGE', stages, 0, -1)) do
        if listed == stage_id then
            return
        end
    end
    redis.call('RPUSH', stages, stage_id)
end
-- A run must be able to end even if its keys were damaged: keys of a wrong type are deleted.
if last then
    local function delete_if_wrong_type(key, reply)
        if reply.err and string.find(reply.err, 'WRONGTYPE', 1, true) then
            redis.call('DEL', key)
        end
    end
    delete_if_wrong_type(stages, redis.pcall('LRANGE', stages, 0, 0))
    for _, stream in ipairs(streams) do
        delete_if_wrong_type(stream, redis.pcall('XRANGE', stream, '-', '-'))
    end
end
local seen, happenings = {}, {}
for i = skip, count - 1 do
    local number, name, data = tonumber(events[3 * i + 1]), events[3 * i + 2], events[3 * i + 3]
    local stream = streams[number]
    local is_new = not seen[stream] and redis.call('EXISTS', stream) == 0
    seen[stream] = true
    redis.call('XADD', stream, attempt .. '-' .. before + i + 1, 'event', name, 'data', data)
    if is_new then
        list_stage(stage_ids[number])
    end
    if told > 0 then
        local happened = {status = 'running', event_id = attempt .. '-' .. before + i + 1, attempt = attempt}
        if name == 'run_started' then
            happened.event = name
            happenings[#happenings + 1] = happened
        elseif name == 'call_deferred' then
            happened.type, happened.call_id = 'call.deferred', cjson.decode(data).call_id
            happenings[#happenings + 1] = happened
        end
    end
end
-- In the same step as the event that completes the stage: a later attempt has both or neither. The run goes on without
-- them if the hash was replaced by a key of another type.
if items_json ~= '' then
    redis.pcall('HSET', items, stage_ids[tonumber(events[3 * count - 2])], items_json)
end
local last_id = attempt .. '-' .. before + count
if tokens == '' then
    redis.call('HSET', run, 'last_id', last_id)
else
    redis.call('HSET', run, 'last_id', last_id, 'tokens', tokens)
end
local time = extra and redis.call('TIME')
local now_ms = extra and time[1] * 1000 + math.floor(time[2] / 1000)
if last then
    redis.call('HSET', run, 'status', last.status, 'worker', '', 'error', last.error, 'usage', last.usage,
        'finish_reason', last.finish_reason, 'finished_at', string.format('%d', now_ms))
    for number, stream in ipairs(streams) do
        if redis.call('EXISTS', stream) == 1 then
            list_stage(stage_ids[number])
            redis.call('PEXPIRE', stream, last.retention_ms)
        end
    end
    redis.call('PEXPIRE', stages, last.retention_ms)
    if last.thread then
        local thread_keys = {unpack(streams_and_others, #streams + told + 1)}
        last.thread.last_id = last_id
        open_thread(thread_keys, last.thread, now_ms).end_run(last.thread.run_id, last.thread)
    end
end
if last and told > 0 then
    happenings[#happenings + 1] = {event = 'run_ended', type = 'run.ended', status = last.status, event_id = last_id,
        attempt = attempt, code = last.error ~= '' and cjson.decode(last.error).code}
end
for _, happened in ipairs(happenings) do
    happened.at = now_ms
    announce(run, extra.run_id, {outbox = outbox, bell = bell, feed = feed}, happened)
end
-- After a partial skip the message does not follow the log's last id. Subscribers notice that by the id
-- in its head and read the log instead.
redis.call('PUBLISH', live, message)
return {'ok', last_id, cancel}
