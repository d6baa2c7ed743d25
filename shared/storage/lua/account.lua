-- account: a run has ended: take it out of what the sweep looks through, and count what it came to.
--
-- KEYS[1] active   zset    keys.ACTIVE
-- KEYS[2] unended  zset    keys.active_of_tenant(tenant)
-- KEYS[3] tokens   hash    keys.tokens(tenant)
-- KEYS[4] totals   hash    keys.TOTALS
-- ARGV[1] run_id   str
-- ARGV[2] day      int     of its end, in days since 1970 by Redis's clock
-- ARGV[3] tokens   int     all that it used
-- ARGV[4] ttl_ms   int     of the tenant's count
-- ARGV[5] status   str     how it ended; '' where its record is gone, and nothing is known to count
-- ARGV[6] events   int     its log's length
-- Returns 1 where it was this call that took it out.
--
-- Safe to repeat: only who takes it out counts, so each run counts once.
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
    return 0
end
if ARGV[5] ~= '' then
    redis.call('HINCRBY', KEYS[4], 'runs_' .. ARGV[5], 1)
    redis.call('HINCRBY', KEYS[4], 'events', ARGV[6])
    redis.call('HINCRBY', KEYS[4], 'tokens', ARGV[3])
end
if ARGV[3] ~= '0' then
    local day = tonumber(redis.call('HGET', KEYS[3], 'day') or '0')
    if day < tonumber(ARGV[2]) then
        redis.call('HSET', KEYS[3], 'day', ARGV[2], 'used', ARGV[3])
    elseif day == tonumber(ARGV[2]) then
        redis.call('HINCRBY', KEYS[3], 'used', ARGV[3])
    end
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
end
return 1
