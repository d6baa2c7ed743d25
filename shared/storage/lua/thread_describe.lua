-- thread_describe: set the title and the metadata of a thread.
--
-- KEYS[1] thread    hash  keys.thread
-- ARGV[1..]         str   field and value, in pairs; an empty value removes the field
-- Returns 1, or 0 if there is no such thread or it is being deleted.
--
-- It is no activity: neither the thread's place in lists nor its TTL changes. Safe to repeat.
local thread, changes = KEYS[1], ARGV

local gen, deleting = unpack(redis.call('HMGET', thread, 'gen', 'deleting'))
if not gen or deleting then
    return 0
end
for i = 1, #changes, 2 do
    if changes[i + 1] == '' then
        redis.call('HDEL', thread, changes[i])
    else
        redis.call('HSET', thread, changes[i], changes[i + 1])
    end
end
return 1
