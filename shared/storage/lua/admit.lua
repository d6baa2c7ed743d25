-- admit: count a run no longer among its tenant's running ones, and let in what was held back for it.
--
-- KEYS[1] run       hash    keys.run
-- KEYS[2] queue     zset    keys.QUEUE
-- KEYS[3] running   zset    keys.RUNNING
-- KEYS[4] held_back zset    keys.HELD_BACK
-- KEYS[5] limits    hash    keys.LIMITS
-- KEYS[6] turn      string  keys.VIRTUAL_TIME
-- KEYS[7] bell      list    keys.BELL
-- KEYS[8] lease     string  keys.lease, unless the run has ended
-- ARGV[1] run_id    str
-- ARGV[2] tenant    str     '' where only the record knows it
-- ARGV[3] runs_running int  the limit where the tenant has none of its own; 0: none
-- ARGV[4] bells     int     the bell's bound
-- Returns how many were let in.
--
-- A run that ended while it was held back becomes due, so that a worker takes it out of
-- the queue. Who is let in is next: it has waited for longer than its turn. A run that was
-- given back, and that another worker took before this came, still runs: it stays. Safe to
-- repeat; the sweep does, for those that a dead process could not let in.
local stored = redis.call('HMGET', KEYS[1], 'tenant', 'finished_at')
local tenant = stored[1] or ARGV[2]
local from, to = '[' .. tenant .. ' ', '(' .. tenant .. '!'
local next = redis.call('GET', KEYS[6]) or '0'
if not KEYS[8] or not stored[1] or stored[2] or redis.call('EXISTS', KEYS[8]) == 0 then
    redis.call('ZREM', KEYS[3], tenant .. ' ' .. ARGV[1])
end
if stored[2] and redis.call('ZREM', KEYS[4], tenant .. ' ' .. ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[2], 'XX', next, ARGV[1])
end
local limit = tonumber(redis.call('HGET', KEYS[5], tenant .. ':runs_running') or ARGV[3]) or 0
local free = limit > 0 and limit - redis.call('ZLEXCOUNT', KEYS[3], from, to) or 1000
local let_in = redis.call('ZRANGEBYLEX', KEYS[4], from, to, 'LIMIT', 0, math.max(0, free))
for _, member in ipairs(let_in) do
    redis.call('ZREM', KEYS[4], member)
    local run_id = string.sub(member, #tenant + 2)
    redis.call('ZADD', KEYS[2], 'XX', next, run_id)
    redis.call('RPUSH', KEYS[7], run_id)
end
redis.call('LTRIM', KEYS[7], -ARGV[4], -1)
return #let_in
