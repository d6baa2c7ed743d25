-- webhook_settle: note the result of a try: delivered, failed for good, or to be tried again.
--
-- KEYS[1] endpoints  hash  keys.WEBHOOK_ENDPOINTS
-- KEYS[2] open       zset  keys.webhook_open
-- KEYS[3] due        zset  keys.webhook_due
-- KEYS[4] trying     zset  keys.webhook_trying
-- KEYS[5] delivery   hash  keys.webhook_delivery
-- KEYS[6] ended      zset  keys.webhook_ended(state)
-- ARGV[1] id         str   the delivery's
-- ARGV[2] endpoint   str
-- ARGV[3] token      str   from acquire; '' ends a delivery whoever holds it
-- ARGV[4] state      str   the state after the try
-- ARGV[5] delay_ms   int   until the next try, if there is one
-- ARGV[6] keep_ms    int   how long an ended delivery is kept
-- ARGV[7] kept_max   int   how many ended deliveries of a state are kept
-- ARGV[8] status     int   the HTTP status; 0 for none
-- ARGV[9] error      str   the reason for a failure, or ''
-- ARGV[10] counted   0|1   the try counts
-- Returns the ids of ended deliveries that are no longer kept, for the caller to remove; nil if the token holds no lease.
--
-- A second call with the same token changes nothing, since the first removed it.
local endpoints, open, due, trying, delivery, ended = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, endpoint, token, state, delay_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local keep_ms, kept_max, status, err, counted = ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]

local stored = redis.call('HMGET', delivery, 'token', 'state')
if stored[2] ~= 'waiting' or (token ~= '' and stored[1] ~= token) then
    return false
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
redis.call('ZREM', trying, id)
redis.call('HDEL', delivery, 'token')
redis.call('HSET', delivery, 'state', state, 'last_status', status, 'last_error', err)
redis.call('HINCRBY', delivery, 'tries', counted)
if state == 'waiting' then
    redis.call('ZADD', due, string.format('%d', now_ms + delay_ms), id)
    return {}
end
redis.call('HSET', delivery, 'ended_at', now)
redis.call('PEXPIRE', delivery, keep_ms)
redis.call('ZREM', due, id)
redis.call('ZREM', open, id)
if redis.call('HINCRBY', endpoints, endpoint, -1) <= 0 then
    redis.call('HDEL', endpoints, endpoint)
end
redis.call('ZADD', ended, now, id)
redis.call('ZREMRANGEBYSCORE', ended, '-inf', string.format('%d', now_ms - keep_ms))
redis.call('PEXPIRE', ended, keep_ms)
local removed = {}
local excess = redis.call('ZCARD', ended) - kept_max
if excess > 0 then
    removed = redis.call('ZRANGE', ended, 0, excess - 1)
    redis.call('ZREMRANGEBYRANK', ended, 0, excess - 1)
end
return removed
