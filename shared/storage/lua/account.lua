-- account: remove an ended run from the active ones and add it to the totals and its tenant's token count.
--
-- KEYS[1] active            zset  keys.ACTIVE
-- KEYS[2] active_of_tenant  zset  keys.active_of_tenant(tenant)
-- KEYS[3] tenant_tokens     hash  keys.tokens(tenant)
-- KEYS[4] totals            hash  keys.TOTALS
-- ARGV[1] run_id   str
-- ARGV[2] day      int     of the run's end, in days since 1970 by Redis's clock
-- ARGV[3] tokens   int     the tokens that the run used
-- ARGV[4] ttl_ms   int     of the tenant's count
-- ARGV[5] status   str     the final state; '' if the record is gone and nothing can be counted
-- ARGV[6] events   int     the length of the run's log
-- Returns 1 if this call removed the run, else 0.
--
-- Safe to repeat: only the call that removes the run counts it, so each run counts once.
local active, active_of_tenant, tenant_tokens, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local run_id, day, tokens, ttl_ms, status, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

redis.call('ZREM', active_of_tenant, run_id)
if redis.call('ZREM', active, run_id) == 0 then
    return 0
end
if status ~= '' then
    redis.call('HINCRBY', totals, 'runs_' .. status, 1)
    redis.call('HINCRBY', totals, 'events', events)
    redis.call('HINCRBY', totals, 'tokens', tokens)
end
if tokens ~= '0' then
    local stored_day = tonumber(redis.call('HGET', tenant_tokens, 'day') or '0')
    if stored_day < tonumber(day) then
        redis.call('HSET', tenant_tokens, 'day', day, 'used', tokens)
    elseif stored_day == tonumber(day) then
        redis.call('HINCRBY', tenant_tokens, 'used', tokens)
    end
    redis.call('PEXPIRE', tenant_tokens, ttl_ms)
end
return 1
