-- finish: remove the job of an ended run from the queue.
--
-- KEYS[1] queue   zset    keys.QUEUE
-- KEYS[2] lease   string  keys.lease
-- KEYS[3] job     string  keys.job
-- KEYS[4] retry   string  keys.arq_retry
-- ARGV[1] run_id  str
-- ARGV[2] token   str     from acquire
-- Returns 1, or 0 if the token no longer holds the lease.
--
-- Fenced by the token: a worker that was frozen at its job's end deletes nothing that another worker holds.
-- That worker finds the run ended and finishes it.
local queue, lease, job, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local run_id, token = ARGV[1], ARGV[2]

if redis.call('GET', lease) ~= token then
    return 0
end
redis.call('ZREM', queue, run_id)
redis.call('DEL', lease, job, retry)
return 1
