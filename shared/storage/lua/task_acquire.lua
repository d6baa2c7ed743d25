-- task_acquire: take the tasks of a tool source that are due for a look, each for one worker.
--
-- KEYS[1] tasks    zset  keys.polled_tasks
-- ARGV[1] worker   str   the worker that asks
-- ARGV[2] lease_ms int   how long it has for a look
-- ARGV[3] grace_ms int   how long after its time a task is left to the worker that began it
-- ARGV[4] limit    int   the most tasks to take
-- Returns {now, Unix ms; the time of the next look, Unix ms, or -1; the tasks, JSON…}.
--
-- The score of a task is the time of its next look, or the end of the lease of the present one: if the worker dies, another
-- one looks then. Repeated after a lost reply, it takes others; those of the first reply wait for the end of their lease.
local tasks = KEYS[1]
local worker, lease_ms, grace_ms, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken, next_at = {}, nil
-- Tasks that are left to other workers must not hide all others.
local due = redis.call('ZRANGEBYSCORE', tasks, '-inf', string.format('%d', now), 'WITHSCORES', 'LIMIT', 0, 4 * limit)
for i = 1, #due, 2 do
    local task, due_at = due[i], tonumber(due[i + 1])
    if #taken == limit then
        next_at = now
    elseif cjson.decode(task).worker == worker or due_at + grace_ms <= now then
        redis.call('ZADD', tasks, string.format('%d', now + lease_ms), task)
        taken[#taken + 1] = task
    else
        next_at = math.min(next_at or due_at + grace_ms, due_at + grace_ms)
    end
end
local later = redis.call('ZRANGEBYSCORE', tasks, '(' .. string.format('%d', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if later[2] then
    next_at = math.min(next_at or tonumber(later[2]), tonumber(later[2]))
end
return {now, next_at or -1, unpack(taken)}
