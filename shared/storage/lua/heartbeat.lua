-- heartbeat: a process says what it is at, and those that have said nothing for a while are forgotten.
--
-- KEYS[1] said    hash  keys.WORKERS or keys.GATEWAYS
-- KEYS[2] seen    zset  the same with `:seen`
-- ARGV[1] name    str   of the process
-- ARGV[2] state   json  '' when it goes
-- ARGV[3] ttl_ms  int   a process is forgotten after this long
-- Returns 1.
--
-- Where all are silent the keys go by themselves. Safe to repeat.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('(%d', now - ARGV[3]))
if ARGV[2] == '' then
    gone[#gone + 1] = ARGV[1]
else
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
    redis.call('ZADD', KEYS[2], string.format('%d', now), ARGV[1])
end
for _, name in ipairs(gone) do
    if name ~= ARGV[1] or ARGV[2] == '' then
        redis.call('HDEL', KEYS[1], name)
        redis.call('ZREM', KEYS[2], name)
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
