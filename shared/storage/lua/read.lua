-- read: return a run's record, if it belongs to the tenant.
--
-- KEYS[1] run     hash  keys.run
-- ARGV[1] tenant  str
-- Returns the record's fields and values; empty if there is no such record or it belongs to another tenant.
--
-- The owner is checked here and not by the caller, so that a large record of another tenant takes as long as one that
-- does not exist.
local run = KEYS[1]
local tenant = ARGV[1]

if redis.call('HGET', run, 'tenant') ~= tenant then
    return {}
end
return redis.call('HGETALL', run)
