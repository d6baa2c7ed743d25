-- rate: count one request against its tenant's rate, unless it is one too many.
--
-- KEYS[1] rate    string  keys.rate(tenant)
-- KEYS[2] limits  hash    keys.LIMITS
-- ARGV[1] tenant  str
-- ARGV[2] requests_per_s  number  the limit where the tenant has none of its own; 0: none
-- Returns {} where there is no limit, else {1 or 0, quota, its window in s, remaining, us until all of it is back,
-- us until the next one may come}.
--
-- A token bucket kept as one number: the time at which it will be full again (GCRA). It
-- holds a second's worth, at least one. Repeated, a request counts twice, which errs on the safe side.
-- Spec: https://www.itu.int/rec/T-REC-I.371
local per_s = tonumber(redis.call('HGET', KEYS[2], ARGV[1] .. ':requests_per_s') or ARGV[2]) or 0
if per_s <= 0 then
    return {}
end
local quota = math.max(1, math.floor(per_s))
local interval_us = 1000000 / per_s
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local full_us = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now_us) + interval_us
local early_us = full_us - now_us - quota * interval_us
local window_s = math.ceil(quota / per_s)
-- Half of a microsecond is what the rounding of the stored time may make of a request that is in time.
if early_us > 0.5 then
    return {0, quota, window_s, 0, math.ceil(full_us - interval_us - now_us), math.ceil(early_us)}
end
redis.call('SET', KEYS[1], string.format('%.0f', full_us), 'PX', math.ceil((full_us - now_us) / 1000))
return {1, quota, window_s, math.floor(-early_us / interval_us + 0.001), math.ceil(full_us - now_us), 0}
