-- slot_renew: keep the slots that a worker holds of a provider.
--
-- KEYS[1] held     zset  keys.provider_slots
-- ARGV[1] slot_ms  int   they are void after this, unless `slot_stay` comes again
-- ARGV[2..] token  str   from slot_enter
-- Returns 1.
--
-- A slot that had become void is held again, even if there are then too many: its answer streams.
local time = redis.call('TIME')
local void = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
for i = 2, #ARGV do
    redis.call('ZADD', KEYS[1], void, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
