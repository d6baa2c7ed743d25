-- create: write a run's record with its first event, 0-1, unless the run exists.
--
-- KEYS[1] run      hash    keys.run
-- KEYS[2] stages   list    keys.stages
-- KEYS[3] journal  stream  keys.stage_stream(run)
-- ARGV[1] status   str     the first state
-- ARGV[2] tenant   str
-- ARGV[3] model    str
-- ARGV[4] request  json
-- ARGV[5] stage    str     the journal's stage id
-- ARGV[6] event    str     the first event's name
-- ARGV[7] data     json    the first event's payload
-- ARGV[8] ttl_ms   int
-- ARGV[9] idempotency str  '' or the key of the client's Idempotency-Key
-- Returns {'created' | 'exists', created_at in Unix ms}.
--
-- Safe to repeat: a second call finds the run and changes nothing.
local created_at = redis.call('HGET', KEYS[1], 'created_at')
if created_at then
    return {'exists', created_at}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1], 'status', ARGV[1], 'attempt', 0, 'tries', 0, 'last_id', '0-1', 'tenant', ARGV[2],
    'model', ARGV[3], 'request', ARGV[4], 'created_at', string.format('%d', now_ms), 'worker', '', 'idempotency', ARGV[9])
redis.call('RPUSH', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[3], '0-1', 'event', ARGV[6], 'data', ARGV[7])
for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, ARGV[8])
end
return {'created', string.format('%d', now_ms)}
