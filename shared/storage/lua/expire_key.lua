-- expire_key: let a client's key end that is bound to a run of another partition.
--
-- KEYS[1] idempotency  string  keys.idempotency
-- ARGV[1] owner   str   the start of the key's value: the run id, or with the token of `bind_key` all of it
-- ARGV[2] ttl_ms  int   from now on; 0: none, the key is free
-- Returns 1, or 0 if the key belongs to another run or request.
--
-- Safe to repeat. After a failover the key may stand for another run by now.
local idempotency = KEYS[1]
local owner, ttl_ms = ARGV[1], ARGV[2]

if string.find(redis.call('GET', idempotency) or '', owner, 1, true) ~= 1 then
    return 0
end
return ttl_ms == '0' and redis.call('DEL', idempotency) or redis.call('PEXPIRE', idempotency, ttl_ms)
