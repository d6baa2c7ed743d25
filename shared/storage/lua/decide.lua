-- decide: store what a person, or the clock, decided on a call; the first decision stands.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] control  channel  keys.control
-- KEYS[3] queue    zset     keys.QUEUE
-- KEYS[4] bell     list     keys.BELL
-- ARGV[1] run_id   str
-- ARGV[2] call_id  str
-- ARGV[3] decision json     from decisions.encode
-- ARGV[4] message  str      what the worker that holds the run hears
-- ARGV[5] bells    int      the bell's bound
-- Returns {'stands', decision}, {'ended'} or {'gone'}; the decision is the one that counts.
--
-- A run that no worker holds is made due. Safe to repeat: the same decision finds itself.
local stored = redis.call('HMGET', KEYS[1], 'created_at', 'decisions', 'finished_at', 'worker')
if not stored[1] then
    return {'gone'}
end
local decisions = stored[2] and cjson.decode(stored[2]) or {}
if decisions[ARGV[2]] then
    return {'stands', decisions[ARGV[2]]}
end
if stored[3] then
    return {'ended'}
end
decisions[ARGV[2]] = ARGV[3]
redis.call('HSET', KEYS[1], 'decisions', cjson.encode(decisions))
redis.call('PUBLISH', KEYS[2], ARGV[4])
if not stored[4] or stored[4] == '' then
    local time = redis.call('TIME')
    redis.call('ZADD', KEYS[3], 'XX', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)), ARGV[1])
    redis.call('RPUSH', KEYS[4], ARGV[1])
    redis.call('LTRIM', KEYS[4], -ARGV[5], -1)
end
return {'stands', ARGV[3]}
