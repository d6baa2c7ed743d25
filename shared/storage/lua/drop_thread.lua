-- drop_thread: let a conversation take no more runs, and list those that it has.
--
-- KEYS[1..]           the thread's, see include/thread.lua
-- ARGV[1] gen    str  the life of the thread that is to be deleted; '': whichever it is
-- ARGV[2] thread json see RunThread.args
-- Returns {gen, run id, ...}, or {} if there is no such thread.
--
-- Waiting runs leave, so none becomes active when the active run is deleted. The caller deletes the runs one by one, and
-- then the thread; if it dies, the sweep does, since the thread is among the busy ones. Safe to repeat.
local thread_keys = {unpack(KEYS, 1)}
local gen, args = ARGV[1], cjson.decode(ARGV[2])

local time = redis.call('TIME')
local thread = open_thread(thread_keys, args, time[1] * 1000 + math.floor(time[2] / 1000))
local stored_gen = redis.call('HGET', thread.record, 'gen')
if not stored_gen or (gen ~= '' and gen ~= stored_gen) then
    return {}
end
redis.call('HSET', thread.record, 'deleting', 1)
for _, run_id in ipairs(redis.call('LRANGE', thread.line, 0, -1)) do
    thread.leave(run_id, 'left')
end
thread.touch(false)
local reply, seen = {stored_gen}, {}
for _, field in ipairs(redis.call('HKEYS', thread.turns)) do
    local run_id = string.match(field, '^[nw]:(.*)$')
    if run_id and not seen[run_id] then
        seen[run_id] = true
        reply[#reply + 1] = run_id
    end
end
return reply
