-- release: give an unfinished run back, due immediately or after a delay.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] wakeup    list    keys.WAKEUP
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from acquire
-- ARGV[3] attempt   int     from claim, or '' before a claim
-- ARGV[4] delay_ms  int     until the run is due
-- ARGV[5] wake      0|1     wake a waiting worker
-- ARGV[6] wakeups_max int   the bound of the wake-up list
-- Returns 1, or 0 if another worker holds the run.
--
-- A released run names no worker, so the gateway can end it by itself. The score comes first and the wake-up last:
-- the worker that wakes finds the run due and free.
local queue, lease, run, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local run_id, token, attempt, delay_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local wake, wakeups_max = ARGV[5] == '1', ARGV[6]

local holder = redis.call('GET', lease)
if holder and holder ~= token then
    return 0
end
if attempt ~= '' and redis.call('HGET', run, 'attempt') ~= attempt then
    return 0
end
local time = redis.call('TIME')
local due_ms = time[1] * 1000 + math.floor(time[2] / 1000) + delay_ms
redis.call('ZADD', queue, 'XX', string.format('%d', due_ms), run_id)
if attempt ~= '' then
    redis.call('HSET', run, 'worker', '')
end
redis.call('DEL', lease)
if wake then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
end
return 1
