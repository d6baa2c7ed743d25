-- slot_renew: renew the slots of a provider that a worker holds.
--
-- KEYS[1] held     zset  keys.provider_slots
-- ARGV[1] slot_ms  int   they expire after this unless they are renewed again
-- ARGV[2..] token  str   from slot_acquire
-- Returns 1.
--
-- An expired slot is held again, even if that exceeds the limit: its answer is still streaming.
local held = KEYS[1]
local slot_ms, tokens = ARGV[1], {unpack(ARGV, 2)}

local time = redis.call('TIME')
local expires = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + slot_ms)
for _, token in ipairs(tokens) do
    redis.call('ZADD', held, expires, token)
end
redis.call('PEXPIRE', held, slot_ms)
return 1
