-- finish: take a job whose run has ended out of the queue.
--
-- KEYS[1] queue   zset    keys.QUEUE
-- KEYS[2] lease   string  keys.lease
-- KEYS[3..]               arq's other keys of the job
-- ARGV[1] run_id  str
-- ARGV[2] token   str     from take
-- Returns 1, or 0 where the lease is not ours any more.
--
-- Fenced by the token: a worker that was frozen at its job's end deletes nothing that
-- another one holds. Whoever holds it then finds the run ended and finishes.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
    return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', unpack(KEYS, 2))
return 1
