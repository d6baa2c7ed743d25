-- drop_thread: let a conversation take no more runs, and list those that it has.
--
-- KEYS[1..]           the thread's, see include/thread.lua
-- ARGV[1] thread json see RunThread.args
-- Returns {gen, run id, ...}, or {} if there is no such thread.
--
-- Waiting runs leave, so none becomes active when the active run is deleted. The caller deletes the runs one by one, and
-- then the thread; if it dies, the sweep does, since the thread is among the busy ones. Safe to repeat.
local thread_keys, args = {unpack(KEYS, 1)}, cjson.decode(ARGV[1])

local time = redis.call('TIME')
local thread = open_thread(thread_keys, args, time[1] * 1000 + math.floor(time[2] / 1000))
local gen = redis.call('HGET', thread.record, 'gen')
if not gen then
    return {}
end
redis.call('HSET', thread.record, 'deleting', 1)
for _, run_id in ipairs(redis.call('LRANGE', thread.line, 0, -1)) do
    thread.leave(run_id, 'left')
end
thread.touch(false)
local reply, seen = {gen}, {}
for _, field in ipairs(redis.call('HKEYS', thread.turns)) do
    local run_id = string.match(field, '^[nw]:(.*)$')
    if run_id and not seen[run_id] then
        seen[run_id] = true
        reply[#reply + 1] = run_id
    end
end
return reply
