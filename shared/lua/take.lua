-- take: get the lease of a job that is due.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- ARGV[1] run_id    str
-- ARGV[2] token     str     unique to this taking
-- ARGV[3] lease_ms  int
-- Returns 1, or 0 where the job is gone, not due or another's.
--
-- The score is the lease's index: its end. So a poll by score meets no job that is held.
-- Safe to repeat with the same token.
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
local lease_ms = tonumber(ARGV[3])
if holder then
    -- Held, though the score says due: put the index right.
    lease_ms = redis.call('PTTL', KEYS[2])
else
    redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
end
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', now_ms + lease_ms), ARGV[1])
return holder and 0 or 1
