-- thread_path: read the messages on the path from a run's parent to the root of its conversation.
--
-- KEYS[1] turns  hash  keys.thread_turns
-- KEYS[2] in     hash  keys.thread_in
-- KEYS[3] out    hash  keys.thread_out
-- ARGV[1] run_id str
-- ARGV[2] bytes_max int  the messages that are read
-- ARGV[3] turns_max int
-- ARGV[4] at        str  the turn to begin with, from the call before; '' begins with the run's parent
-- ARGV[5] read_bytes int the bytes that the calls before have read
-- Returns {the run's own messages, how many turns were left out, the turn to go on with or '', the bytes that were read;
-- then for each turn, the parent first: run id, parent, the fields n, t, s, c, e, b and d, own messages, resulting messages}.
--
-- A path is fixed when the run becomes active, and turns that have ended do not change, so each attempt of a run gets
-- the same, in however many calls. Beyond bytes_max turns are counted, not read.
local turns, messages_in, messages_out = KEYS[1], KEYS[2], KEYS[3]
local run_id, bytes_max, turns_max, at, read_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])

-- A key of a wrong type counts as empty: the run then begins with what is left, or ends.
local function get(hash, field)
    local value = redis.pcall('HGET', hash, field)
    return type(value) == 'string' and value or ''
end
local reply = {'', 0, '', 0}
local left_out = 0
if at == '' then
    reply[1] = get(messages_in, run_id)
    read_bytes = #reply[1]
    at = get(turns, 'p:' .. run_id)
end
for _ = 1, turns_max do
    if at == '' then
        break
    end
    local stored = redis.call('HMGET', turns, 'p:' .. at, 'n:' .. at, 't:' .. at, 's:' .. at, 'c:' .. at, 'e:' .. at,
        'b:' .. at, 'd:' .. at)
    local parent = stored[1]
    read_bytes = read_bytes + tonumber(stored[7] or '0')
    if not parent then -- the thread's keys were damaged
        left_out = left_out + 1
        at = ''
        break
    end
    if left_out > 0 or read_bytes > bytes_max then
        left_out = left_out + 1
    else
        local turn = {at, parent}
        for number = 2, 8 do
            turn[number + 1] = stored[number] or ''
        end
        turn[10] = get(messages_in, at)
        turn[11] = get(messages_out, at)
        reply[#reply + 1] = turn
    end
    at = parent
end
reply[2], reply[3], reply[4] = left_out, at, read_bytes
return reply
