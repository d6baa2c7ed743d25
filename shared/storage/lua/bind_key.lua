-- bind_key: bind a client's key to a run of another partition, before the run is created.
--
-- KEYS[1] idempotency  string  keys.idempotency
-- ARGV[1] run_id  str
-- ARGV[2] digest  str   of the request
-- ARGV[3] token   str   unique to this request; the last one that has it may free the key again
-- ARGV[4] ttl_ms  int   until the run's end sets another one
-- Returns '<run_id> <digest>' of the run that the key is bound to, now or since an earlier request.
--
-- Safe to repeat. The same request that is sent again takes the key over: only it may free the key then, so that a request
-- that is refused frees no key under which another one has made the run meanwhile.
local idempotency = KEYS[1]
local run_id, digest, token, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local held_id, held_digest = string.match(redis.call('GET', idempotency) or '', '^(%S+) (%S+)')
if not held_id then
    redis.call('SET', idempotency, run_id .. ' ' .. digest .. ' ' .. token, 'PX', ttl_ms)
    return run_id .. ' ' .. digest
end
if held_digest == digest then
    redis.call('SET', idempotency, held_id .. ' ' .. digest .. ' ' .. token, 'KEEPTTL')
end
return held_id .. ' ' .. held_digest
