-- read: return a run's record, if it belongs to the owner.
--
-- KEYS[1] run     hash  keys.run
-- ARGV[1] tenant  str
-- ARGV[2] user    str   only if the run must be this user's
-- Returns the record's fields and values; empty if there is no such record or it belongs to another owner.
--
-- The owner is checked here and not by the caller, so that a large record of another owner takes as long as one that
-- does not exist.
local run = KEYS[1]
local tenant, user = ARGV[1], ARGV[2]

if not is_owned(redis.call('HMGET', run, 'tenant', 'user'), tenant, user) then
    return {}
end
return redis.call('HGETALL', run)
