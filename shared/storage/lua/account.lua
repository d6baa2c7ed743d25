-- account: give an ended run's keys their TTL, settle its tokens, and remove it from the active runs.
--
-- KEYS[1] active            zset  keys.ACTIVE
-- KEYS[2] active_of_tenant  zset  keys.active_of_tenant(tenant)
-- KEYS[3] tenant_tokens     hash  keys.tokens(tenant)
-- KEYS[4] totals            hash  keys.TOTALS
-- KEYS[5] minute_totals     hash  keys.totals_of_minute(minute of the run's end)
-- KEYS[6] reserved          hash  keys.RESERVED
-- KEYS[7..]                       every key that the run may have, its record first
-- ARGV[1] run_id   str
-- ARGV[2] day      int     of the run's end, in days since 1970 by Redis's clock
-- ARGV[3] tokens   int     the tokens that the run used
-- ARGV[4] ttl_ms   int     of the tenant's count
-- ARGV[5] status   str     the final state; '' if the record is gone and nothing can be counted
-- ARGV[6] events   int     the length of the run's log
-- ARGV[7] ended_at int     Unix ms by Redis's clock; 0 if the record is gone
-- ARGV[8] retention_ms int  how long the keys live after the run's end
-- ARGV[9] tenant   str
-- ARGV[10] minute_ttl_ms int  of minute_totals
-- Returns 1 if this call removed the run, else 0.
--
-- A key of a run has no TTL exactly as long as the run is in the active ones: the TTL and the removal are one step. The
-- idempotency key expires with the record; if it lived on, it would create another run with the same id.
-- Safe to repeat: only the call that removes the run counts it, so each run counts once, and only the call that
-- removes its reservation takes it from the tenant's sum. Both happen in one step, so its tokens are always counted.
local active, active_of_tenant, tenant_tokens, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local minute_totals, reserved = KEYS[5], KEYS[6]
local run_keys = {unpack(KEYS, 7)}
local run_id, day, tokens, ttl_ms, status, events = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local ended_at, retention_ms, tenant, minute_ttl_ms = tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]

if ended_at == 0 then
    local time = redis.call('TIME')
    ended_at = time[1] * 1000 + math.floor(time[2] / 1000)
end
-- A deleted run has nothing but its tombstone, with a TTL of its own. The record of a damaged run may be no hash.
local is_deleted = run_keys[1] and redis.pcall('HEXISTS', run_keys[1], 'deleted_at') == 1
local expires_at = string.format('%d', ended_at + retention_ms)
for _, key in ipairs(is_deleted and {} or run_keys) do
    redis.call('PEXPIREAT', key, expires_at)
end
local member = tenant .. ' ' .. run_id
local held = redis.call('HGET', reserved, member)
if held then
    redis.call('HDEL', reserved, member)
    -- The sum may be gone, or lower, if its key expired or Redis lost its tail.
    local sum = tonumber(redis.call('HGET', tenant_tokens, 'reserved') or '0')
    if sum > 0 then
        redis.call('HSET', tenant_tokens, 'reserved', string.format('%d', math.max(0, sum - held)))
    end
end
redis.call('ZREM', active_of_tenant, run_id)
if redis.call('ZREM', active, run_id) == 0 then
    return 0
end
if status ~= '' then
    for _, counted in ipairs({totals, minute_totals}) do
        redis.call('HINCRBY', counted, 'runs_' .. status, 1)
        redis.call('HINCRBY', counted, 'events', events)
        redis.call('HINCRBY', counted, 'tokens', tokens)
    end
    redis.call('PEXPIRE', minute_totals, minute_ttl_ms)
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
