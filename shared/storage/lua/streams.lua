-- streams: store how many streams of a tenant a gateway holds open, if the tenant's limit allows it.
--
-- KEYS[1] streams  hash  keys.streams(tenant)
-- ARGV[1] tenant   str
-- ARGV[2] gateway  str   unique to the process
-- ARGV[3] open     int   how many streams it holds, including one that it is about to open
-- ARGV[4] is_new   0|1   whether it is about to open one, which may be refused
-- ARGV[5] streams_open  int  the limit of a tenant without its own; 0: none
-- ARGV[6] ttl_ms   int   how long a gateway's number is valid
-- ARGV[7] limits   str   keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- Returns 'unlimited', 'ok' or 'refused'.
--
-- Each gateway reports its whole number repeatedly, so errors do not add up, and the number of a dead gateway expires.
-- Safe to repeat.
local streams = KEYS[1]
local tenant, gateway, open, is_new = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local streams_open, ttl_ms, limits = ARGV[5], ARGV[6], ARGV[7]

local limit = tenant_limit(limits, tenant, 'streams_open', streams_open)
if limit <= 0 then
    return 'unlimited'
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local reports = redis.call('HGETALL', streams)
local total = open
for i = 1, #reports, 2 do
    local reporter = reports[i]
    local reported, until_ms = string.match(reports[i + 1], '^(%d+) (%d+)$')
    if not reported or tonumber(until_ms) < now_ms then
        redis.call('HDEL', streams, reporter)
    elseif reporter ~= gateway then
        total = total + reported
    end
end
if is_new and total > limit then
    return 'refused'
end
if open == 0 then
    redis.call('HDEL', streams, gateway)
    return 'ok'
end
redis.call('HSET', streams, gateway, string.format('%d %d', open, now_ms + ttl_ms))
redis.call('PEXPIRE', streams, ttl_ms)
return 'ok'
