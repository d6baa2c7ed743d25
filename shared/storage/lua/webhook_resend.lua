-- webhook_resend: make a delivery due now, with all its tries and time before it again.
--
-- KEYS[1] endpoints  hash  keys.WEBHOOK_ENDPOINTS
-- KEYS[2] gone       hash  keys.WEBHOOK_GONE
-- KEYS[3] open       zset  keys.webhook_open
-- KEYS[4] due        zset  keys.webhook_due
-- KEYS[5] trying     zset  keys.webhook_trying
-- KEYS[6] delivery   hash  keys.webhook_delivery
-- KEYS[7] delivered  zset  keys.webhook_ended(delivered)
-- KEYS[8] failed     zset  keys.webhook_ended(failed)
-- KEYS[9] bell       list  keys.outbox_bell
-- ARGV[1] id         str   the delivery's
-- ARGV[2] endpoint   str
-- Returns 1; 0 if the delivery is gone.
--
-- A try that is under way goes on. An endpoint that answered 410 is asked again.
local endpoints, gone, open, due, trying = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local delivery, delivered, failed, bell = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local id, endpoint = ARGV[1], ARGV[2]

local stored = redis.call('HMGET', delivery, 'state', 'created_at')
local state, created_at = stored[1], stored[2]
if not state then
    return 0
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HDEL', gone, endpoint)
redis.call('HSET', delivery, 'state', 'waiting', 'since', now, 'tries', 0)
if state ~= 'waiting' then
    redis.call('PERSIST', delivery)
    redis.call('HDEL', delivery, 'ended_at')
    redis.call('ZREM', delivered, id)
    redis.call('ZREM', failed, id)
    redis.call('ZADD', open, created_at, id)
    redis.call('HINCRBY', endpoints, endpoint, 1)
end
if not redis.call('ZSCORE', trying, id) then
    redis.call('ZADD', due, now, id)
end
-- A bell that no worker has heard yet need not ring again; without workers the list would grow.
if redis.call('LLEN', bell) == 0 then
    redis.call('RPUSH', bell, '1')
end
return 1
