-- forget_thread: delete the keys of a conversation whose runs are deleted.
--
-- KEYS[1..]           the thread's, see include/thread.lua
-- ARGV[1] gen    str  the life of the thread that drop_thread began to delete
-- ARGV[2] thread json see RunThread.args
-- Returns 1, or 0 if that thread is gone already.
--
-- Nothing is active in it: drop_thread removed the waiting runs, and the caller deleted the others. If it names an active
-- run, that run's keys were lost. A thread of the same id that is created afterwards has another gen, so a late caller does not delete it.
local thread_keys = {unpack(KEYS, 1)}
local gen, args = ARGV[1], cjson.decode(ARGV[2])

local thread = open_thread(thread_keys, args, 0)
local stored = redis.call('HMGET', thread.record, 'gen', 'deleting')
if stored[1] ~= gen or not stored[2] then
    return 0
end
thread.forget()
return 1
