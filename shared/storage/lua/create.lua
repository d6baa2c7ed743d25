-- create: write a run's record with its first event, 0-1, queue it and ring, unless it exists or may not.
--
-- KEYS[1] run      hash    keys.run
-- KEYS[2] stages   list    keys.stages
-- KEYS[3] journal  stream  keys.stage_stream(run)
-- KEYS[4] active   zset    keys.ACTIVE
-- KEYS[5] runs     zset    keys.runs(tenant)
-- KEYS[6] unended  zset    keys.active_of_tenant(tenant)
-- KEYS[7] running  zset    keys.RUNNING
-- KEYS[8] limits   hash    keys.LIMITS
-- KEYS[9] tokens   hash    keys.tokens(tenant)
-- KEYS[10] turn    string  keys.VIRTUAL_TIME
-- KEYS[11] next    string  keys.tenant_virtual_time(tenant)
-- KEYS[12] queue   zset    keys.QUEUE
-- KEYS[13] job     string  keys.job
-- KEYS[14] bell    list    keys.BELL
-- KEYS[15] reserved string keys.idempotency, if the client gave one
-- ARGV[1] status   str     the first state
-- ARGV[2] tenant   str
-- ARGV[3] model    str
-- ARGV[4] request  json
-- ARGV[5] stage    str     the journal's stage id
-- ARGV[6] event    str     the first event's name
-- ARGV[7] data     json    the first event's payload
-- ARGV[8] ttl_ms   int
-- ARGV[9] run_id  str
-- ARGV[10] made_ms int     the time inside the run's id
-- ARGV[11] life_ms int     longer than any run's keys live
-- ARGV[12] runs_queued     int  the limit where the tenant has none of its own; 0: none
-- ARGV[13] tokens_per_day  int  in the same way
-- ARGV[14] request_id  str  the trace of who asked, or ''
-- ARGV[15] traceparent str  likewise
-- ARGV[16] job     bytes   arq's serialised job, or '': it is not queued
-- ARGV[17] bells   int     the bell's bound
-- ARGV[18] reservation str what the client's key is to hold
-- Returns {'created' | 'exists', created_at in Unix ms, turn}, {limit's name, limit, ms until it may be otherwise} or
-- {'reserved', what the client's key holds, ''}.
--
-- Safe to repeat: a second call finds the run and changes nothing. Its order is what a reader may see, and what a
-- log of commands that breaks off here leaves: lists, record, job, bell. The bell says whose it is.
-- The client's key is bound by nothing but the run: what was refused leaves it free for another body.
-- A turn is a place in the order in which waiting runs are taken: each run's is one after
-- its tenant's last one, but none lies before the turn that was taken last. So tenants
-- alternate, and who comes with one run waits for one of each other's, however many they have.
local stored = redis.call('HMGET', KEYS[1], 'created_at', 'turn')
if stored[1] then
    return {'exists', stored[1], stored[2] or '0'}
end
local reserved = KEYS[15] and redis.call('GET', KEYS[15])
if reserved and reserved ~= ARGV[18] then
    return {'reserved', reserved, ''}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local own = redis.call('HMGET', KEYS[8], ARGV[2] .. ':runs_queued', ARGV[2] .. ':tokens_per_day')
local queued_max, tokens_max = tonumber(own[1] or ARGV[12]) or 0, tonumber(own[2] or ARGV[13]) or 0
if queued_max > 0 then
    local running = redis.call('ZLEXCOUNT', KEYS[7], '[' .. ARGV[2] .. ' ', '(' .. ARGV[2] .. '!')
    if redis.call('ZCARD', KEYS[6]) - running >= queued_max then
        return {'runs_queued', queued_max, 0}
    end
end
if tokens_max > 0 then
    local day, used = math.floor(time[1] / 86400), redis.call('HMGET', KEYS[9], 'day', 'used')
    if tonumber(used[1]) == day and tonumber(used[2]) >= tokens_max then
        return {'tokens_per_day', tokens_max, (day + 1) * 86400000 - now_ms}
    end
end
local taken = tonumber(redis.call('GET', KEYS[10]) or '0')
local turn = math.max(taken, tonumber(redis.call('GET', KEYS[11]) or '1'))
redis.call('SET', KEYS[10], string.format('%d', taken), 'PX', ARGV[11])
redis.call('SET', KEYS[11], string.format('%d', turn + 1), 'PX', ARGV[11])
redis.call('ZADD', KEYS[4], ARGV[10], ARGV[9])
for i = 5, 6 do
    redis.call('ZADD', KEYS[i], ARGV[10], ARGV[9])
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', string.format('%d', ARGV[10] - ARGV[11]))
    redis.call('PEXPIRE', KEYS[i], ARGV[11])
end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'attempt', 0, 'tries', 0, 'last_id', '0-1', 'tenant', ARGV[2],
    'model', ARGV[3], 'request', ARGV[4], 'created_at', string.format('%d', now_ms), 'worker', '',
    'idempotency', KEYS[15] or '', 'turn', string.format('%d', turn),
    'request_id', ARGV[14], 'traceparent', ARGV[15])
redis.call('RPUSH', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[3], '0-1', 'event', ARGV[6], 'data', ARGV[7])
for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], ARGV[8])
end
if KEYS[15] then
    redis.call('SET', KEYS[15], ARGV[18], 'PX', ARGV[8])
end
if ARGV[16] ~= '' then
    redis.call('SET', KEYS[13], ARGV[16], 'PX', ARGV[8])
    redis.call('ZADD', KEYS[12], string.format('%d', turn), ARGV[9])
    redis.call('RPUSH', KEYS[14], ARGV[9])
    redis.call('LTRIM', KEYS[14], -ARGV[17], -1)
end
return {'created', string.format('%d', now_ms), string.format('%d', turn)}
