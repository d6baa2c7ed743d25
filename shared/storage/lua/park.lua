-- park: give a run back that waits for decisions, due when the first of them expires.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] wakeup    list    keys.WAKEUP
-- KEYS[5] outbox    stream  keys.outbox
-- KEYS[6] bell      list    keys.outbox_bell
-- KEYS[7] feed      stream  keys.feed, if the tenant is known
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from acquire
-- ARGV[3] attempt   int     from claim
-- ARGV[4] due_ms    int     Unix ms
-- ARGV[5] seen      json    the record's decisions as the worker last read them; '' for none
-- ARGV[6] status    str     the state of a parked run
-- ARGV[7] wakeups_max int   the bound of the wake-up list
-- Returns 1, or 0 if another worker holds the run.
--
-- A decision or a cancel that the worker has not seen makes the run due immediately. As in release, the score comes
-- first and the wake-up last, and the run names no worker.
-- Safe to repeat: others are told of a run that really waits, and once an attempt.
local queue, lease, run, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local to = {outbox = KEYS[5], bell = KEYS[6], feed = KEYS[7]}
local run_id, token, attempt, due_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local seen, status, wakeups_max = ARGV[5], ARGV[6], ARGV[7]

local holder = redis.call('GET', lease)
local stored = redis.call('HMGET', run, 'attempt', 'decisions', 'cancel', 'finished_at', 'status', 'last_id')
local stored_attempt, decisions, cancel, finished_at = stored[1], stored[2] or '', stored[3], stored[4]
if (holder and holder ~= token) or stored_attempt ~= attempt or finished_at then
    return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local is_due = cancel or decisions ~= seen
redis.call('ZADD', queue, 'XX', is_due and now or due_ms, run_id)
redis.call('HSET', run, 'status', status, 'worker', '', 'parked_at', now)
redis.call('DEL', lease)
if is_due then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
elseif stored[5] ~= status then
    announce(run, run_id, to, {event = 'run_waiting', type = 'run.waiting', status = status, event_id = stored[6],
        attempt = attempt, at = tonumber(now)})
end
return 1
