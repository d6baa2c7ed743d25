-- deliver: store the result of a call that waits for it; the first result of a call is final.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] results  hash     keys.results
-- KEYS[3] control  channel  keys.control
-- KEYS[4] queue    zset     keys.QUEUE
-- KEYS[5] wakeup   list     keys.WAKEUP
-- ARGV[1] run_id   str
-- ARGV[2] field    str      from call_results.result_field
-- ARGV[3] result   json     from call_results.encode
-- ARGV[4] message  str      the message for the worker that holds the run
-- ARGV[5] wakeups_max int   the bound of the wake-up list
-- Returns {'delivered', the call's result}, {'ended'} or {'gone'}.
--
-- A run that no worker holds becomes due. Safe to repeat: a second call finds its own result. Results of clients, of
-- tools and of an expired wait all take this way, so one of them is the first. The hash is bounded by the calls of the
-- run's log: callers deliver for no others.
local run, results, control, queue, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_id, field, result, message, wakeups_max = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local stored = redis.call('HMGET', run, 'created_at', 'finished_at')
if not stored[1] then
    return {'gone'}
end
local first = redis.call('HGET', results, field)
if first then
    return {'delivered', first}
end
if stored[2] then
    return {'ended'}
end
redis.call('HSET', results, field, result)
number_change(run, control, queue, wakeup, run_id, message, wakeups_max)
return {'delivered', result}
