-- release: give a run back unfinished: at once, or at a due time.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] bell      list    keys.BELL
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from take
-- ARGV[3] attempt   int     from claim, or '' before one
-- ARGV[4] delay_ms  int     until it is due
-- ARGV[5] ring      0|1     wake a waiting worker
-- ARGV[6] bells     int     the bell's bound
-- Returns 1, or 0 where another holds the run.
--
-- A released run names no worker, so the gateway can end it by itself. The score
-- comes first and the bell last: who hears the bell finds the job due and free.
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
    return 0
end
if ARGV[3] ~= '' and redis.call('HGET', KEYS[3], 'attempt') ~= ARGV[3] then
    return 0
end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4]
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', due), ARGV[1])
if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[3], 'worker', '')
end
redis.call('DEL', KEYS[2])
if ARGV[5] == '1' then
    redis.call('RPUSH', KEYS[4], ARGV[1])
    redis.call('LTRIM', KEYS[4], -ARGV[6], -1)
end
return 1
