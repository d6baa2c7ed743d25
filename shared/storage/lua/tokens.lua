-- tokens: take tokens of a provider's minute, or put right how many were taken.
--
-- KEYS[1] tokens      string  keys.provider_tokens
-- ARGV[1] taken       int     tokens; negative ones come back
-- ARGV[2] per_minute  int     the limit
-- Returns ms until they may be used, by who takes them.
--
-- A token bucket kept as one number, the time at which it will be full again (GCRA). It holds
-- a minute's worth. Who takes more than there is waits for its own turn and no longer: whoever
-- asks later stands behind it. Of a request larger than the whole bucket a full one is enough.
-- Repeated, tokens count twice, which errs on the safe side and is over within a minute or so.
local MINUTE_US = 60000000
local taken, per_minute = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local full_us = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now_us)
local early_us = full_us - now_us + math.min(math.max(taken, 0), per_minute) * MINUTE_US / per_minute - MINUTE_US
full_us = full_us + taken * MINUTE_US / per_minute
if full_us > now_us then
    redis.call('SET', KEYS[1], string.format('%.0f', full_us), 'PX', math.ceil((full_us - now_us) / 1000))
else
    redis.call('DEL', KEYS[1])
end
return math.max(0, math.ceil(early_us / 1000))
