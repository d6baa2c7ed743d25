-- revoke_ticket: take a ticket for a run back, for as long as the run is there.
--
-- KEYS[1] run        hash  keys.run
-- ARGV[1] tenant     str   whose the run has to be
-- ARGV[2] ticket_id  str
-- ARGV[3] ids_max    int   how many may be taken back of one run
-- Returns 'gone', 'full' or 'ok'.
--
-- In the run's own record, so that it stays exactly as long as there is something to see. Safe to repeat.
local stored = redis.call('HMGET', KEYS[1], 'tenant', 'revoked')
if stored[1] ~= ARGV[1] then
    return 'gone'
end
local count = 0
for id in string.gmatch(stored[2] or '', '%S+') do
    if id == ARGV[2] then
        return 'ok'
    end
    count = count + 1
end
if count >= tonumber(ARGV[3]) then
    return 'full'
end
redis.call('HSET', KEYS[1], 'revoked', (stored[2] and stored[2] .. ' ' or '') .. ARGV[2])
return 'ok'
