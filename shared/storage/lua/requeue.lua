-- requeue: ensure that a run has a job and an entry in the queue.
--
-- KEYS[1] queue   zset    keys.QUEUE
-- KEYS[2] job     string  keys.job
-- KEYS[3] wakeup  list    keys.WAKEUP
-- ARGV[1] run_id  str
-- ARGV[2] job_bytes   bytes  the serialised arq job
-- ARGV[3] ttl_ms      int    the job's TTL
-- ARGV[4] wakeups_max int    the bound of the wake-up list
-- Returns 1 if the queue had no entry for the run, else 0.
--
-- Unlike arq's enqueue it repairs a partial state: a job without an entry, an entry whose job expired. Safe to repeat.
local queue, job, wakeup = KEYS[1], KEYS[2], KEYS[3]
local run_id, job_bytes, ttl_ms, wakeups_max = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

redis.call('SET', job, job_bytes, 'PX', ttl_ms)
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local added = redis.call('ZADD', queue, 'NX', now, run_id)
if added == 1 then
    redis.call('RPUSH', wakeup, run_id)
    redis.call('LTRIM', wakeup, -wakeups_max, -1)
end
return added
