-- slot_release: give a slot back, or a place in the line, and tell those who wait.
--
-- KEYS[1] held   zset     keys.provider_slots
-- KEYS[2] line   zset
-- KEYS[3] seen   zset
-- KEYS[4] freed  channel  keys.provider_freed
-- ARGV[1] token  str      from slot_enter
-- Returns 1, or 0 where nobody waits.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('ZCARD', KEYS[2]) == 0 then
    return 0
end
redis.call('PUBLISH', KEYS[4], '')
return 1
