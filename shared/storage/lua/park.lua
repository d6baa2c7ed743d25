-- park: give a run back that waits for decisions, due when the first of them expires.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] bell      list    keys.BELL
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from take
-- ARGV[3] attempt   int     from claim
-- ARGV[4] due_ms    int     Unix ms
-- ARGV[5] seen      json    the record's decisions, as the worker last saw them; '' for none
-- ARGV[6] status    str     the state of a parked run
-- ARGV[7] bells     int     the bell's bound
-- Returns 1, or 0 where another holds the run.
--
-- What the worker did not see any more makes the run due at once: a decision, a cancel.
-- As in release, the score comes first and the bell last, and the run names no worker.
local holder = redis.call('GET', KEYS[2])
local stored = redis.call('HMGET', KEYS[3], 'attempt', 'decisions', 'cancel', 'finished_at')
if (holder and holder ~= ARGV[2]) or stored[1] ~= ARGV[3] or stored[4] then
    return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local is_due = stored[3] or (stored[2] or '') ~= ARGV[5]
redis.call('ZADD', KEYS[1], 'XX', is_due and now or ARGV[4], ARGV[1])
redis.call('HSET', KEYS[3], 'status', ARGV[6], 'worker', '', 'parked_at', now)
redis.call('DEL', KEYS[2])
if is_due then
    redis.call('RPUSH', KEYS[4], ARGV[1])
    redis.call('LTRIM', KEYS[4], -ARGV[7], -1)
end
return 1
