-- decide: store the decision on a call; the first decision of a call is final.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] control  channel  keys.control
-- KEYS[3] queue    zset     keys.QUEUE
-- KEYS[4] wakeup   list     keys.WAKEUP
-- ARGV[1] run_id   str
-- ARGV[2] call_id  str
-- ARGV[3] decision json     from decisions.encode
-- ARGV[4] message  str      the message for the worker that holds the run
-- ARGV[5] wakeups_max int   the bound of the wake-up list
-- Returns {'decided', the call's decision}, {'ended'} or {'gone'}.
--
-- A run that no worker holds becomes due. Safe to repeat: a second call finds its own decision.
local run, control, queue, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local run_id, call_id, decision, message, wakeups_max = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local stored = redis.call('HMGET', run, 'created_at', 'decisions', 'finished_at')
local created_at, decisions_json, finished_at = stored[1], stored[2], stored[3]
if not created_at then
    return {'gone'}
end
local decisions = decisions_json and cjson.decode(decisions_json) or {}
if decisions[call_id] then
    return {'decided', decisions[call_id]}
end
if finished_at then
    return {'ended'}
end
decisions[call_id] = decision
redis.call('HSET', run, 'decisions', cjson.encode(decisions))
number_change(run, control, queue, wakeup, run_id, message, wakeups_max)
return {'decided', decision}
