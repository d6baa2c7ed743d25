-- slot_acquire: acquire a slot of a provider, or keep a place among the requests that wait for one.
--
-- KEYS[1] held        zset  keys.provider_slots
-- KEYS[2] waiting     zset
-- KEYS[3] seen        zset
-- KEYS[4] requests    zset
-- ARGV[1] token       str   unique to this request
-- ARGV[2] held_max    int   number of slots; 0: any number
-- ARGV[3] minute_max  int   requests within any minute; 0: any number
-- ARGV[4] waited_ms   int   how long the token has waited already
-- ARGV[5] slot_ms     int   a slot expires after this unless slot_renew renews it
-- ARGV[6] seen_ms     int   a waiting token that does not ask again within this is removed
-- Returns {'acquired'} or {'wait', ms}: ask again after ms, or -1 if only a release helps.
--
-- First come, first served over all workers: the place of a token is the time since when it waits. Slots and places
-- of a killed worker expire by their scores.
-- Safe to repeat: a token that has a slot keeps it and counts as one request.
local held, waiting, seen, requests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, held_max, minute_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local waited_ms, slot_ms, seen_ms = ARGV[4], ARGV[5], ARGV[6]

local MINUTE_MS = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
redis.call('ZREMRANGEBYSCORE', requests, '-inf', now - MINUTE_MS)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', waiting, silent)
    redis.call('ZREM', seen, silent)
end

local free_slots = held_max > 0 and held_max - redis.call('ZCARD', held) or math.huge
local free_requests = minute_max > 0 and minute_max - redis.call('ZCARD', requests) or math.huge
if not redis.call('ZSCORE', held, token) then
    redis.call('ZADD', waiting, 'NX', string.format('%d', now - waited_ms), token)
    redis.call('ZADD', seen, string.format('%d', now + seen_ms), token)
    local ahead = redis.call('ZRANK', waiting, token)
    if ahead >= free_slots or ahead >= free_requests then
        redis.call('PEXPIRE', waiting, seen_ms)
        redis.call('PEXPIRE', seen, seen_ms)
        if ahead < free_requests then
            return {'wait', -1}
        end
        -- The request that must be older than a minute before this token may go.
        local last = redis.call('ZRANGE', requests, ahead - free_requests, ahead - free_requests, 'WITHSCORES')
        return {'wait', last[2] and last[2] + MINUTE_MS - now + 1 or MINUTE_MS}
    end
    redis.call('ZREM', waiting, token)
    redis.call('ZREM', seen, token)
    if minute_max > 0 then
        redis.call('ZADD', requests, string.format('%d', now), token)
        redis.call('PEXPIRE', requests, MINUTE_MS)
    end
end
if held_max > 0 then
    redis.call('ZADD', held, string.format('%d', now + slot_ms), token)
    redis.call('PEXPIRE', held, slot_ms)
end
return {'acquired'}
