-- heartbeat: store a process's state and remove processes that have been silent for too long.
--
-- KEYS[1] processes hash  keys.WORKERS or keys.GATEWAYS
-- KEYS[2] seen      zset  the same key with `:seen`
-- ARGV[1] name      str   the process's name
-- ARGV[2] state     json  '' when the process stops
-- ARGV[3] ttl_ms    int   a process is removed after this time without a heartbeat
-- Returns 1.
--
-- The keys expire if no process sends heartbeats. Safe to repeat.
local processes, seen = KEYS[1], KEYS[2]
local name, state, ttl_ms = ARGV[1], ARGV[2], ARGV[3]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local silent = redis.call('ZRANGEBYSCORE', seen, '-inf', string.format('(%d', now - ttl_ms))
if state == '' then
    silent[#silent + 1] = name
else
    redis.call('HSET', processes, name, state)
    redis.call('ZADD', seen, string.format('%d', now), name)
end
for _, silent_name in ipairs(silent) do
    if silent_name ~= name or state == '' then
        redis.call('HDEL', processes, silent_name)
        redis.call('ZREM', seen, silent_name)
    end
end
redis.call('PEXPIRE', processes, ttl_ms)
redis.call('PEXPIRE', seen, ttl_ms)
return 1
