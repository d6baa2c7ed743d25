-- claim: give a run its next attempt, which fences every older one off.
--
-- KEYS[1] run          hash  keys.run
-- KEYS[2] stages       list  keys.stages
-- KEYS[3] lease        str   keys.lease, where the claim is for its holder alone
-- ARGV[1] worker       str   who claims
-- ARGV[2] status       str   the state of a claimed run
-- ARGV[3] only_unheld  0|1   1: leave a run alone that a worker holds
-- ARGV[4] token        str   from take, with KEYS[3]
-- Returns {'claimed', attempt, last_id, tries, cancel, now_ms, the record's fields and values, stage ids},
-- {'held', worker}, {'fenced'}, {'ended'} or {'gone'}.
--
-- An attempt is never used twice, though the claim that took it be lost with the log's
-- tail: it is at least the ms since the run was made, by this server's clock.
-- Who took the run and slept until its lease was over must not take it from who has it by now.
-- A claim is a try where another worker stands in the record: that one died, since who
-- hands a run back takes its name out. Safe to repeat: the same worker's next claim is none.
-- A list of stages that is none has none: whoever claimed can end the run all the same.
-- The time that the run was parked is summed up: it does not count as the run's own.
local stored = redis.call('HMGET', KEYS[1], 'attempt', 'created_at', 'last_id', 'tries', 'cancel', 'worker',
    'finished_at', 'started_at', 'parked_at', 'parked_ms')
if not stored[2] then
    return {'gone'}
end
if stored[7] then
    return {'ended'}
end
local holder = KEYS[3] and redis.call('GET', KEYS[3])
if holder and holder ~= ARGV[4] then
    return {'fenced'}
end
local worker = stored[6] or ''
if ARGV[3] == '1' and worker ~= '' then
    return {'held', worker}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = string.format('%d', math.max(tonumber(stored[1]) + 1, now_ms - tonumber(stored[2])))
local tries = tonumber(stored[4])
if worker ~= '' and worker ~= ARGV[1] then
    tries = tries + 1
end
local now = string.format('%d', now_ms)
redis.call('HSET', KEYS[1], 'attempt', attempt, 'tries', tries, 'status', ARGV[2], 'worker', ARGV[1])
if stored[9] then
    local parked_ms = tonumber(stored[10] or '0') + math.max(0, now_ms - tonumber(stored[9]))
    redis.call('HSET', KEYS[1], 'parked_ms', string.format('%d', parked_ms))
    redis.call('HDEL', KEYS[1], 'parked_at')
end
if not stored[8] and ARGV[3] ~= '1' then
    redis.call('HSET', KEYS[1], 'started_at', now)
end
local stages = redis.pcall('LRANGE', KEYS[2], 0, -1)
if stages.err and not string.find(stages.err, 'WRONGTYPE', 1, true) then
    return stages
end
return {'claimed', attempt, stored[3], tries, stored[5] or '0', now, redis.call('HGETALL', KEYS[1]),
    stages.err and {} or stages}
