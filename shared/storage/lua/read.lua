-- read: give a run's record, if it is the tenant's.
--
-- KEYS[1] run     hash  keys.run
-- ARGV[1] tenant  str
-- Returns the record's fields and values in turn; nothing where there is no such record, or it is another's.
--
-- In one step with the question whose it is, so that a record that is another's takes as long
-- as one that is not there, however big it is.
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then
    return {}
end
return redis.call('HGETALL', KEYS[1])
