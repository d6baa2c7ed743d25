-- requeue: make sure that a run has a job in the queue.
--
-- KEYS[1] queue   zset    keys.QUEUE
-- KEYS[2] job     string  keys.job
-- KEYS[3] bell    list    keys.BELL
-- ARGV[1] run_id  str
-- ARGV[2] job     bytes   arq's serialised job
-- ARGV[3] ttl_ms  int     the job's TTL
-- ARGV[4] bells   int     the bell's bound
-- Returns 1 where the queue had no entry for it, else 0.
--
-- Unlike arq's enqueue it mends what is half there: a job without an entry, an entry
-- whose job expired. Safe to repeat.
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local added = redis.call('ZADD', KEYS[1], 'NX', now, ARGV[1])
if added == 1 then
    redis.call('RPUSH', KEYS[3], ARGV[1])
    redis.call('LTRIM', KEYS[3], -ARGV[4], -1)
end
return added
