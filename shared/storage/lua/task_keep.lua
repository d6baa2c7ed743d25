-- task_keep: note in a run's results that a call has become a task, so that no later attempt begins it again.
--
-- KEYS[1] run      hash  keys.run
-- KEYS[2] results  hash  keys.results
-- ARGV[1] field    str   from call_results.task_field
-- ARGV[2] task     json  from PolledTask.encode
-- Returns 1, or 0 if the run has ended or is gone: its keys expire or are deleted, and nothing may be added to them.
--
-- Safe to repeat: the same task stands there then.
local run, results = KEYS[1], KEYS[2]
local field, task = ARGV[1], ARGV[2]

local stored = redis.call('HMGET', run, 'created_at', 'finished_at')
if not stored[1] or stored[2] then
    return 0
end
redis.call('HSET', results, field, task)
return 1
