-- acquire: get the lease of a job that is due, if its tenant may have one more run running.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] running   zset    keys.RUNNING
-- KEYS[5] held_back zset    keys.HELD_BACK
-- KEYS[6] limits    hash    keys.LIMITS
-- KEYS[7] turn      string  keys.VIRTUAL_TIME
-- ARGV[1] run_id    str
-- ARGV[2] token     str     unique to this taking
-- ARGV[3] lease_ms  int
-- ARGV[4] runs_running int  the limit where the tenant has none of its own; 0: none
-- ARGV[5] times     int     scores from here on are times, those below are turns
-- ARGV[6] never     int     the score of what is held back
-- Returns 1, or 0 where the job is gone, not due, another's, or held back from now on.
--
-- The score is the lease's index: its end. So a poll by score meets no job that is held,
-- nor any that is held back: `leave` brings those back one by one. Safe to repeat with the same token.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score then
    return 0
end
local holder = redis.call('GET', KEYS[2])
if holder == ARGV[2] then
    return 1
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(score) > now_ms then
    return 0
end
if holder then
    -- Held, though the score says due: put the index right.
    redis.call('ZADD', KEYS[1], 'XX', string.format('%d', now_ms + redis.call('PTTL', KEYS[2])), ARGV[1])
    return 0
end
local stored = redis.call('HMGET', KEYS[3], 'tenant', 'finished_at')
local tenant = stored[1] or ''
local member = tenant .. ' ' .. ARGV[1]
local limit = tonumber(redis.call('HGET', KEYS[6], tenant .. ':runs_running') or ARGV[4]) or 0
if limit > 0 and not stored[2] and not redis.call('ZSCORE', KEYS[4], member)
    and redis.call('ZLEXCOUNT', KEYS[4], '[' .. tenant .. ' ', '(' .. tenant .. '!') >= limit then
    redis.call('ZADD', KEYS[5], 0, member)
    redis.call('ZADD', KEYS[1], 'XX', ARGV[6], ARGV[1])
    return 0
end
redis.call('ZADD', KEYS[4], 0, member)
redis.call('ZREM', KEYS[5], member)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', now_ms + ARGV[3]), ARGV[1])
if tonumber(score) < tonumber(ARGV[5]) and tonumber(score) > tonumber(redis.call('GET', KEYS[7]) or 'inf') then
    redis.call('SET', KEYS[7], string.format('%d', score), 'KEEPTTL')
end
return 1
