-- cancel: store that a run is to be cancelled, and tell the worker that holds it.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] control  channel  keys.control
-- ARGV[1] message  str      what the worker hears
-- Returns {'asked', worker}, {'ended'} or {'gone'}; worker is '' where nobody holds the run.
--
-- Safe to repeat. The flag is stored, so a worker that claims the run later honours it.
local stored = redis.call('HMGET', KEYS[1], 'created_at', 'worker', 'finished_at')
if not stored[1] then
    return {'gone'}
end
if stored[3] then
    return {'ended'}
end
redis.call('HSET', KEYS[1], 'cancel', 1)
redis.call('PUBLISH', KEYS[2], ARGV[1])
return {'asked', stored[2] or ''}
