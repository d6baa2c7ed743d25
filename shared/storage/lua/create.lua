-- create: write a run's record and its first event, 0-1, queue it and wake a worker, unless a limit forbids it.
--
-- KEYS[1] run            hash    keys.run
-- KEYS[2] stages         list    keys.stages
-- KEYS[3] journal        stream  keys.stage_stream(run)
-- KEYS[4] active         zset    keys.ACTIVE
-- KEYS[5] runs           zset    keys.runs(tenant)
-- KEYS[6] active_of_tenant zset  keys.active_of_tenant(tenant)
-- KEYS[7] running        zset    keys.RUNNING
-- KEYS[8] tokens         hash    keys.tokens(tenant)
-- KEYS[9] vtime         string  keys.VIRTUAL_TIME
-- KEYS[10] tenant_vtime  string  keys.tenant_virtual_time(tenant)
-- KEYS[11] queue         zset    keys.QUEUE
-- KEYS[12] job           string  keys.job
-- KEYS[13] wakeup        list    keys.WAKEUP
-- KEYS[14] reserved      hash    keys.RESERVED
-- KEYS[15] runs_of_user   zset    keys.runs(tenant, user); the same as KEYS[5] without a user
-- KEYS[16] feed          stream  keys.feed(tenant)
-- KEYS[17] idempotency   string  keys.idempotency, if the client sent a key
-- KEYS[18..]                     of a run in a conversation, the last ones: see include/thread.lua; then keys.outbox and
--                                keys.outbox_bell; then the record and the control channel of the expected active run,
--                                and the record of the expected interrupt
-- ARGV[1] status         str     the first state
-- ARGV[2] tenant         str
-- ARGV[3] model          str
-- ARGV[4] request        json
-- ARGV[5] stage          str     the journal's stage id
-- ARGV[6] event          str     the first event's name
-- ARGV[7] data           json    the first event's payload
-- ARGV[8] run_id         str
-- ARGV[9] made_ms        int     the time inside the run's id
-- ARGV[10] life_ms       int     TTL of the tenant's lists and of the virtual times
-- ARGV[11] runs_queued   int     the limit of a tenant without its own; 0: none
-- ARGV[12] tokens_per_day int    likewise
-- ARGV[13] request_id    str     the request's trace, or ''
-- ARGV[14] traceparent   str     likewise
-- ARGV[15] job_bytes     bytes   the serialised arq job; '': the run is not queued
-- ARGV[16] wakeups_max   int     the bound of the wake-up list
-- ARGV[17] reservation   str     the value that the client's key gets
-- ARGV[18] limits        str     keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- ARGV[19] tokens_wanted int     the tokens to reserve for the run; fewer if its tenant's day has fewer left
-- ARGV[20] tokens_ttl_ms int     TTL of the tenant's count
-- ARGV[21] user          str     the person within the tenant, or ''
-- ARGV[22] baggage       str     the request's baggage, or ''
-- ARGV[23] webhook_url   str     the run's own webhook, or ''
-- ARGV[24] has_webhooks  0|1     the process has webhooks configured
-- ARGV[25] thread_keys   int     how many of KEYS are those of a run in a conversation; 0: the run is in none
-- ARGV[26] ask           json    see ThreadAdmission.encode
-- ARGV[27] messages      json    the run's own messages; its record has none then
-- ARGV[28] bound_apart   str     the client's key if it is of another partition, and so bound already, else ''
-- Returns {'created' | 'exists', created_at in Unix ms, vtime}, {the limit's name, limit, ms until it may pass; 0:
-- unknown}, {'reserved', the value of the client's key, ''} or {'deleted', deleted_at, ''}. Of a run in a thread also
-- {'busy', active run, the digest of its request}, {'expected', active run, waiting interrupt or ''}: ask again and name
-- these; {'thread_full' | 'thread_deleting' | 'parent_not_found' | 'parent_not_ended', '', ''} or {'too_many_waiting', how
-- many may, ''}.
--
-- Safe to repeat: a second call finds the run and changes nothing. The writes go in the order in which a reader may
-- see them, and in which a truncated append-only file keeps them: lists, record, job, wake-up.
-- The keys of an active run have no TTL, so it cannot vanish while no process lives; account gives them one. Of the
-- tenant's lists, old entries are removed, but never those of active runs. At most TRIMMED_MAX are looked at, and if
-- there are more, those from a place that moves with the clock.
-- The reservation keeps runs that are created at once from each counting on the same tokens; account settles it.
-- The client's key is bound only when the run is created: a refused request leaves it free for another body.
-- The score of a new run is its virtual time. A run that waits for its turn in a thread gets one when its turn comes.
-- The run is looked for before its thread is: the repetition of a POST whose reply was lost would find the thread busy
-- with its own run.
local run, stages, journal = KEYS[1], KEYS[2], KEYS[3]
local active, runs, active_of_tenant, running = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local tokens, vtime_key, tenant_vtime_key = KEYS[8], KEYS[9], KEYS[10]
local queue, job, wakeup, reserved = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local runs_of_user, feed, thread_keys = KEYS[15], KEYS[16], {unpack(KEYS, #KEYS - ARGV[25] + 1)}
local idempotency = #KEYS - #thread_keys > 16 and KEYS[17] or nil
local status, tenant, model, request = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stage, event, data, run_id = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local made_ms, life_ms, runs_queued, tokens_per_day = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local request_id, traceparent, job_bytes = ARGV[13], ARGV[14], ARGV[15]
local wakeups_max, reservation, limits = ARGV[16], ARGV[17], ARGV[18]
local tokens_wanted, tokens_ttl_ms, user, baggage = tonumber(ARGV[19]), ARGV[20], ARGV[21], ARGV[22]
local webhook_url, has_webhooks = ARGV[23], ARGV[24]
local ask_json, messages, bound_apart = ARGV[26], ARGV[27], ARGV[28]

local TRIMMED_MAX = 100
local stored = redis.call('HMGET', run, 'created_at', 'vtime', 'deleted_at')
if stored[1] then
    return {'exists', stored[1], stored[2] or '0'}
end
if stored[3] then
    return {'deleted', stored[3], ''}
end
local bound_to = idempotency and redis.call('GET', idempotency)
if bound_to and bound_to ~= reservation then
    return {'reserved', bound_to, ''}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local queued_max = tenant_limit(limits, tenant, 'runs_queued', runs_queued)
local tokens_max = tenant_limit(limits, tenant, 'tokens_per_day', tokens_per_day)
if queued_max > 0 then
    local running_count = redis.call('ZLEXCOUNT', running, '[' .. tenant .. ' ', '(' .. tenant .. '!')
    if redis.call('ZCARD', active_of_tenant) - running_count >= queued_max then
        return {'runs_queued', queued_max, 0}
    end
end
if tokens_max > 0 then
    local day = math.floor(time[1] / 86400)
    local left, used = tokens_left(tokens, tokens_max, day)
    if left < 1 then
        return {'tokens_per_day', tokens_max, used >= tokens_max and (day + 1) * 86400000 - now_ms or 0}
    end
    tokens_wanted = math.min(tokens_wanted, math.floor(left))
end
local now = string.format('%d', now_ms)
local thread, ask, others, is_active
if ask_json ~= '' then
    ask, others = cjson.decode(ask_json), {unpack(thread_keys, THREAD_KEYS + 3)}
    ask.messages = messages
    thread = open_thread(thread_keys, ask, now_ms)
    local outbox, bell = unpack(thread_keys, THREAD_KEYS + 1, THREAD_KEYS + 2)
    local to = {outbox = outbox, bell = bell, feed = feed, has_webhooks = has_webhooks}
    local refusal = admit_to_thread(thread, ask, others, to, now_ms)
    if refusal then
        return refusal
    end
    is_active = join_thread(thread, run_id, ask, others, now)
end
local waits = thread and not is_active
local vtime = waits and '0' or next_virtual_time(vtime_key, tenant_vtime_key, life_ms)
redis.call('ZADD', active, made_ms, run_id)
if tokens_wanted > 0 then
    redis.call('HSET', reserved, tenant .. ' ' .. run_id, string.format('%d', tokens_wanted))
    redis.call('HINCRBY', tokens, 'reserved', string.format('%d', tokens_wanted))
    redis.call('PEXPIRE', tokens, tokens_ttl_ms)
end
local lists = {runs, active_of_tenant}
if user ~= '' then
    table.insert(lists, runs_of_user)
end
for _, list in ipairs(lists) do
    redis.call('ZADD', list, made_ms, run_id)
    local horizon = string.format('%d', made_ms - life_ms)
    local old_count = redis.call('ZCOUNT', list, '-inf', horizon)
    local offset = old_count > TRIMMED_MAX and now_ms % (old_count - TRIMMED_MAX + 1) or 0
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', list, '-inf', horizon, 'LIMIT', offset, TRIMMED_MAX)) do
        if not redis.call('ZSCORE', active, old) then
            redis.call('ZREM', list, old)
        end
    end
    redis.call('PEXPIRE', list, life_ms)
end
redis.call('DEL', stages, journal)
redis.call('HSET', run, 'status', status, 'attempt', 0, 'tries', 0, 'last_id', '0-1', 'tenant', tenant,
    'model', model, 'request', request, 'created_at', now, 'worker', '', 'idempotency', idempotency or bound_apart,
    'vtime', vtime, 'request_id', request_id, 'traceparent', traceparent)
if user ~= '' then
    redis.call('HSET', run, 'user', user)
end
if baggage ~= '' then
    redis.call('HSET', run, 'baggage', baggage)
end
if webhook_url ~= '' or has_webhooks == '1' then
    redis.call('HSET', run, 'webhook_url', webhook_url, 'has_webhooks', has_webhooks)
end
if thread then
    redis.call('HSET', run, 'thread', thread.record, 'thread_id', ask.thread_id, 'digest', ask.digest)
end
redis.call('RPUSH', stages, stage)
redis.call('XADD', journal, '0-1', 'event', event, 'data', data)
if idempotency then
    redis.call('SET', idempotency, reservation)
end
if job_bytes ~= '' then
    redis.call('SET', job, job_bytes)
    redis.call('ZADD', queue, waits and ask.never_score or vtime, run_id)
end
if job_bytes ~= '' and not waits then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
end
announce(run, run_id, {feed = feed}, {event = 'run_created', status = status, event_id = '0-1', at = now_ms})
return {'created', now, vtime}
