-- requeue: ensure that an active run has a job and an entry in the queue.
--
-- KEYS[1] queue   zset    keys.QUEUE
-- KEYS[2] job     string  keys.job
-- KEYS[3] wakeup  list    keys.WAKEUP
-- KEYS[4] run     hash    keys.run
-- KEYS[5] thread  hash    keys.thread, of a run in a conversation
-- ARGV[1] run_id  str
-- ARGV[2] job_bytes   bytes  the serialised arq job
-- ARGV[3] wakeups_max int    the bound of the wake-up list
-- ARGV[4] never_score int    the score of a run that waits for its turn
-- Returns 1 if the queue had no entry for the run and has one now, else 0.
--
-- Unlike arq's enqueue it repairs a partial state: a job without an entry, an entry whose job is gone. A run that has
-- ended gets nothing, since nothing would remove its job. Safe to repeat.
local queue, job, wakeup, run, thread = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_id, job_bytes, wakeups_max, never_score = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local stored = redis.call('HMGET', run, 'created_at', 'finished_at')
if not stored[1] or stored[2] then
    return 0
end
redis.call('SET', job, job_bytes)
local active = thread and redis.call('HGET', thread, 'active')
if active and active ~= run_id then
    return redis.call('ZADD', queue, 'NX', never_score, run_id)
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local added = redis.call('ZADD', queue, 'NX', now, run_id)
if added == 1 then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
end
return added
