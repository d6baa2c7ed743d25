-- cancel: store a cancel request and send it to the worker that holds the run.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] control  channel  keys.control
-- ARGV[1] message  str      the message for the worker
-- ARGV[2] reason   str      why, for people; '' or left out for none
-- Returns {'asked', worker}, {'ended'} or {'gone'}; worker is '' if no worker holds the run.
--
-- Safe to repeat; the first reason stays. The flag is stored, so a worker that claims the run later honours it.
local run, control = KEYS[1], KEYS[2]
local message, reason = ARGV[1], ARGV[2] or ''

local stored = redis.call('HMGET', run, 'created_at', 'worker', 'finished_at', 'cancel_reason')
local created_at, worker, finished_at, first_reason = stored[1], stored[2] or '', stored[3], stored[4]
if not created_at then
    return {'gone'}
end
if finished_at then
    return {'ended'}
end
redis.call('HSET', run, 'cancel', 1)
if reason ~= '' and not first_reason then
    redis.call('HSET', run, 'cancel_reason', reason)
end
redis.call('PUBLISH', control, message)
return {'asked', worker}
