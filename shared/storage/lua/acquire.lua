-- acquire: acquire the lease of a due run, if its tenant may have one more run running.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4] running   zset    keys.RUNNING
-- KEYS[5] throttled zset    keys.THROTTLED
-- KEYS[6] vtime     string  keys.VIRTUAL_TIME
-- ARGV[1] run_id    str
-- ARGV[2] token     str     unique to this acquisition
-- ARGV[3] lease_ms  int
-- ARGV[4] runs_running    int  the limit of a tenant without its own; 0: none
-- ARGV[5] time_score_min  int  scores from here on are times, lower ones are virtual times
-- ARGV[6] throttled_score int  the score of a throttled run
-- ARGV[7] limits   str   keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- Returns 1, or 0 if the run is gone, not due, held by another token, or throttled from now on.
--
-- The score of a held run is the end of its lease, so a poll by score finds neither held nor throttled runs; admit
-- makes the latter due one by one. Safe to repeat with the same token.
local queue, lease, run, running = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local throttled, vtime_key = KEYS[5], KEYS[6]
local run_id, token, lease_ms = ARGV[1], ARGV[2], ARGV[3]
local runs_running, time_score_min, throttled_score, limits = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]

local score = redis.call('ZSCORE', queue, run_id)
if not score then
    return 0
end
score = tonumber(score)
local holder = redis.call('GET', lease)
if holder == token then
    return 1
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if score > now_ms then
    return 0
end
if holder then
    -- Held, though its score says due: repair the score.
    redis.call('ZADD', queue, 'XX', string.format('%d', now_ms + redis.call('PTTL', lease)), run_id)
    return 0
end
local stored = redis.call('HMGET', run, 'tenant', 'finished_at')
local tenant, has_ended = stored[1] or '', stored[2]
local member = tenant .. ' ' .. run_id
local limit = tenant_limit(limits, tenant, 'runs_running', runs_running)
if limit > 0 and not has_ended and not redis.call('ZSCORE', running, member)
    and redis.call('ZLEXCOUNT', running, '[' .. tenant .. ' ', '(' .. tenant .. '!') >= limit then
    redis.call('ZADD', throttled, 0, member)
    redis.call('ZADD', queue, 'XX', throttled_score, run_id)
    return 0
end
redis.call('ZADD', running, 0, member)
redis.call('ZREM', throttled, member)
redis.call('SET', lease, token, 'PX', lease_ms)
redis.call('ZADD', queue, 'XX', string.format('%d', now_ms + lease_ms), run_id)
if score < time_score_min and score > tonumber(redis.call('GET', vtime_key) or 'inf') then
    redis.call('SET', vtime_key, string.format('%d', score), 'KEEPTTL')
end
return 1
