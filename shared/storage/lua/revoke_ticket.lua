-- revoke_ticket: revoke a ticket for a run, for as long as the run exists.
--
-- KEYS[1] run        hash  keys.run
-- ARGV[1] ticket_id  str
-- ARGV[2] ids_max    int   how many tickets of one run a subject may revoke
-- ARGV[3] subject    str   who revokes it
-- ARGV[4] tenant     str   the tenant that must own the run
-- ARGV[5] user       str   only if the run must be this user's
-- Returns 'gone', 'full' or 'ok'.
--
-- The ids are stored in the run's record, so they exist exactly as long as the run. Safe to repeat.
local run = KEYS[1]
local ticket_id, ids_max, subject = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local tenant, user = ARGV[4], ARGV[5]

local count_field = 'revoked_by:' .. subject
local stored = redis.call('HMGET', run, 'tenant', 'user', 'revoked', count_field)
local revoked, count = stored[3], tonumber(stored[4] or '0')
if not is_owned(stored, tenant, user) then
    return 'gone'
end
for id in string.gmatch(revoked or '', '%S+') do
    if id == ticket_id then
        return 'ok'
    end
end
if count >= ids_max then
    return 'full'
end
redis.call('HSET', run, 'revoked', (revoked and revoked .. ' ' or '') .. ticket_id, count_field, count + 1)
return 'ok'
