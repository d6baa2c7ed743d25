-- tokens: take tokens from a provider's minute, or correct how many were taken.
--
-- KEYS[1] tokens      string  keys.provider_tokens
-- ARGV[1] taken       int     tokens; a negative number gives tokens back
-- ARGV[2] per_minute  int     the limit
-- Returns the ms until the taken tokens may be used.
--
-- A token bucket stored as one number, the time at which it will be full again (GCRA). It holds one minute's worth.
-- A request that takes more than there is waits until the bucket has refilled; later requests wait behind it. A
-- request larger than the whole bucket needs a full one and no more.
-- A repeated call counts twice, which errs on the safe side and is over within about a minute.
local tokens = KEYS[1]
local taken, per_minute = tonumber(ARGV[1]), tonumber(ARGV[2])

local MINUTE_US = 60000000
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local full_us = math.max(tonumber(redis.call('GET', tokens) or '0'), now_us)
local early_us = full_us - now_us + math.min(math.max(taken, 0), per_minute) * MINUTE_US / per_minute - MINUTE_US
full_us = full_us + taken * MINUTE_US / per_minute
if full_us > now_us then
    redis.call('SET', tokens, string.format('%.0f', full_us), 'PX', math.ceil((full_us - now_us) / 1000))
else
    redis.call('DEL', tokens)
end
return math.max(0, math.ceil(early_us / 1000))
