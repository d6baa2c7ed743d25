-- streams: say how many streams of a tenant a gateway holds open, if all gateways together may hold so many.
--
-- KEYS[1] streams  hash  keys.streams(tenant)
-- KEYS[2] limits   hash  keys.LIMITS
-- ARGV[1] tenant   str
-- ARGV[2] gateway  str   unique to the process
-- ARGV[3] open     int   how many it holds, one that is to be opened included
-- ARGV[4] is_new   0|1   whether there is one to be opened, which may be refused
-- ARGV[5] streams_open  int  the limit where the tenant has none of its own; 0: none
-- ARGV[6] ttl_ms   int   for how long a gateway is believed
-- Returns 'unlimited', 'ok' or 'refused'.
--
-- Each gateway tells its whole number again and again, so nothing adds up wrongly, and one
-- that died is forgotten. Safe to repeat.
local limit = tonumber(redis.call('HGET', KEYS[2], ARGV[1] .. ':streams_open') or ARGV[5]) or 0
if limit <= 0 then
    return 'unlimited'
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local told = redis.call('HGETALL', KEYS[1])
local total = tonumber(ARGV[3])
for i = 1, #told, 2 do
    local open, until_ms = string.match(told[i + 1], '^(%d+) (%d+)$')
    if not open or tonumber(until_ms) < now_ms then
        redis.call('HDEL', KEYS[1], told[i])
    elseif told[i] ~= ARGV[2] then
        total = total + open
    end
end
if ARGV[4] == '1' and total > limit then
    return 'refused'
end
if ARGV[3] == '0' then
    redis.call('HDEL', KEYS[1], ARGV[2])
    return 'ok'
end
redis.call('HSET', KEYS[1], ARGV[2], string.format('%d %d', ARGV[3], now_ms + ARGV[6]))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 'ok'
