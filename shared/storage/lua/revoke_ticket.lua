-- revoke_ticket: revoke a ticket for a run, for as long as the run exists.
--
-- KEYS[1] run        hash  keys.run
-- ARGV[1] tenant     str   the tenant that must own the run
-- ARGV[2] ticket_id  str
-- ARGV[3] ids_max    int   how many tickets of one run a subject may revoke
-- ARGV[4] subject    str   who revokes it
-- Returns 'gone', 'full' or 'ok'.
--
-- The ids are stored in the run's record, so they exist exactly as long as the run. Safe to repeat.
local run = KEYS[1]
local tenant, ticket_id, ids_max, subject = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local count_field = 'revoked_by:' .. subject
local stored = redis.call('HMGET', run, 'tenant', 'revoked', count_field)
local owner, revoked, count = stored[1], stored[2], tonumber(stored[3] or '0')
if owner ~= tenant then
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
