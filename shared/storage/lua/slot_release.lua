-- slot_release: release a slot, or a place among those that wait, and notify the waiting processes.
--
-- KEYS[1] held    zset     keys.provider_slots
-- KEYS[2] waiting zset
-- KEYS[3] seen    zset
-- KEYS[4] freed   channel  keys.provider_freed
-- ARGV[1] token   str      from slot_acquire
-- Returns 1, or 0 if no request waits.
local held, waiting, seen, freed = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token = ARGV[1]

redis.call('ZREM', held, token)
redis.call('ZREM', waiting, token)
redis.call('ZREM', seen, token)
if redis.call('ZCARD', waiting) == 0 then
    return 0
end
redis.call('PUBLISH', freed, '')
return 1
