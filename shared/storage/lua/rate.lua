-- rate: count one request against the rate limit of its tenant or ticket, unless it exceeds the limit.
--
-- KEYS[1] rate    string  keys.rate
-- ARGV[1] tenant  str
-- ARGV[2] requests_per_s  number  the limit of a tenant without its own; 0: none
-- ARGV[3] name     str   the limit's name
-- ARGV[4] limits   str   keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- Returns {} if there is no limit, else {1 or 0, quota, its window in s, remaining, us until the quota is full,
-- us until the next request may come}.
--
-- A token bucket stored as one number, the time at which it will be full again (GCRA). It holds one second's worth,
-- at least one request. A repeated call counts twice, which errs on the safe side.
-- Spec: https://www.itu.int/rec/T-REC-I.371
local rate = KEYS[1]
local tenant, requests_per_s, name, limits = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local per_s = tenant_limit(limits, tenant, name, requests_per_s)
if per_s <= 0 then
    return {}
end
-- The intervals of other limits are no whole microseconds, or no TTL that Redis takes.
per_s = math.min(math.max(per_s, 1e-6), 1e6)
local quota = math.max(1, math.floor(per_s))
local interval_us = 1000000 / per_s
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local full_us = math.max(tonumber(redis.call('GET', rate) or '0'), now_us) + interval_us
local early_us = full_us - now_us - quota * interval_us
local window_s = math.ceil(quota / per_s)
-- The rounding of the stored time can make a request up to half a microsecond early.
if early_us > 0.5 then
    return {0, quota, window_s, 0, math.ceil(full_us - interval_us - now_us), math.ceil(early_us)}
end
redis.call('SET', rate, string.format('%.0f', full_us), 'PX', math.ceil((full_us - now_us) / 1000))
return {1, quota, window_s, math.floor(-early_us / interval_us + 0.001), math.ceil(full_us - now_us), 0}
