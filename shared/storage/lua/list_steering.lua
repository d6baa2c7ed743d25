-- list_steering: the waiting runs of a conversation whose messages may join its active run, and these messages.
--
-- KEYS[1] turns  hash  keys.thread_turns
-- KEYS[2] in     hash  keys.thread_in
-- KEYS[3] line   list  keys.thread_line
-- ARGV[1] run_id str   the active run
-- Returns {run id, messages, ...}, the one that came first before the others.
local turns, messages_in, line = KEYS[1], KEYS[2], KEYS[3]
local run_id = ARGV[1]

-- If keys have a wrong type, nothing joins the run.
local reply = {}
for _, waiting in ipairs(redis.pcall('LRANGE', line, 0, -1)) do
    if redis.pcall('HGET', turns, 'w:' .. waiting) == 'steer:' .. run_id then
        local messages = redis.pcall('HGET', messages_in, waiting)
        reply[#reply + 1] = waiting
        reply[#reply + 1] = type(messages) == 'string' and messages or '[]'
    end
end
return reply
