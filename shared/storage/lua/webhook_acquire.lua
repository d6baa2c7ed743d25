-- webhook_acquire: acquire the lease of one try of a delivery that is due, if its endpoint has a place left.
--
-- KEYS[1] due       zset  keys.webhook_due
-- KEYS[2] trying    zset  keys.webhook_trying
-- KEYS[3] delivery  hash  keys.webhook_delivery
-- ARGV[1] id        str   the delivery's
-- ARGV[2] token     str   unique to this try
-- ARGV[3] lease_ms  int
-- ARGV[4] places    int   most tries of the endpoint at once, over all workers
-- Returns the delivery's fields and values; none if it is not due, held, gone, or the endpoint has no place left.
--
-- The score of a held delivery is the end of its lease, so a try whose worker died is due again then. Safe to repeat
-- with the same token.
local due, trying, delivery = KEYS[1], KEYS[2], KEYS[3]
local id, token, lease_ms, places = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

local score = redis.call('ZSCORE', due, id)
if not score then
    return {}
end
if redis.call('HGET', delivery, 'token') == token then
    return redis.call('HGETALL', delivery)
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', trying, '-inf', string.format('%d', now_ms))
if tonumber(score) > now_ms or redis.call('ZCARD', trying) >= places then
    return {}
end
if redis.call('EXISTS', delivery) == 0 then
    redis.call('ZREM', due, id)
    return {}
end
local lease_end = string.format('%d', now_ms + lease_ms)
redis.call('ZADD', trying, lease_end, id)
redis.call('ZADD', due, lease_end, id)
redis.call('HSET', delivery, 'token', token)
return redis.call('HGETALL', delivery)
