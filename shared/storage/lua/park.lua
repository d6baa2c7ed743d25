-- park: give a run back that waits for decisions or results, due when the first of its calls expires.
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
-- ARGV[5] news      int     the number of the last change that the worker has read, see number_change; 0 for none
-- ARGV[6] decisions_bytes int  the length of the record's decisions as the worker last read them
-- ARGV[7] status    str     the state of a parked run
-- ARGV[8] wakeups_max int   the bound of the wake-up list
-- Returns 1, or 0 if another worker holds the run.
--
-- A decision, a result or a cancel that the worker has not seen makes the run due immediately. The length of the
-- decisions shows one that a gateway of an older version stored, which does not number it. As in release, the score
-- comes first and the wake-up last, and the run names no worker.
-- Safe to repeat: a run that this attempt has parked stays as it is, and as what has come since has made it. Others are
-- told of a run that really waits, and once an attempt.
local queue, lease, run, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local to = {outbox = KEYS[5], bell = KEYS[6], feed = KEYS[7]}
local run_id, token, attempt, due_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local news, decisions_bytes, status, wakeups_max = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]

local holder = redis.call('GET', lease)
local stored = redis.call('HMGET', run, 'attempt', 'news', 'cancel', 'finished_at', 'status', 'decisions', 'last_id')
local stored_attempt, stored_news, cancel, finished_at = stored[1], stored[2] or '0', stored[3], stored[4]
if (holder and holder ~= token) or stored_attempt ~= attempt or finished_at then
    return 0
end
if stored[5] == status then
    return 1
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local is_due = cancel or stored_news ~= news or #(stored[6] or '') ~= decisions_bytes
redis.call('ZADD', queue, 'XX', is_due and now or due_ms, run_id)
redis.call('HSET', run, 'status', status, 'worker', '', 'parked_at', now, 'parked_due', due_ms)
redis.call('DEL', lease)
if is_due then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
else
    announce(run, run_id, to, {event = 'run_waiting', type = 'run.waiting', status = status, event_id = stored[7],
        attempt = attempt, at = tonumber(now)})
end
return 1
