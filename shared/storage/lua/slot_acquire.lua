-- slot_acquire: take a slot of a provider, or keep a place in the line before it.
--
-- KEYS[1] held        zset  keys.provider_slots
-- KEYS[2] line        zset
-- KEYS[3] seen        zset
-- KEYS[4] asked       zset
-- ARGV[1] token       str   unique to this request
-- ARGV[2] held_max    int   slots there are; 0: any number
-- ARGV[3] minute_max  int   requests within any minute; 0: any number
-- ARGV[4] waited_ms   int   for how long the token has waited already
-- ARGV[5] slot_ms     int   a slot is void after this, unless `slot_stay` comes
-- ARGV[6] seen_ms     int   who waits and does not ask again within this is gone
-- Returns {'entered'}, or {'wait', ms}: so long at least, or -1 where only another's leaving helps.
--
-- First come, first served over all workers: a token's place is the time since when it waits.
-- What a killed worker left, slot or place, ends by its score.
-- Safe to repeat: a token that is in stays in, and counts as one request.
local MINUTE_MS = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held_max, minute_max = tonumber(ARGV[2]), tonumber(ARGV[3])

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - MINUTE_MS)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[2], gone)
    redis.call('ZREM', KEYS[3], gone)
end

local free = held_max > 0 and held_max - redis.call('ZCARD', KEYS[1]) or math.huge
local left = minute_max > 0 and minute_max - redis.call('ZCARD', KEYS[4]) or math.huge
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    redis.call('ZADD', KEYS[2], 'NX', string.format('%d', now - ARGV[4]), ARGV[1])
    redis.call('ZADD', KEYS[3], string.format('%d', now + ARGV[6]), ARGV[1])
    local ahead = redis.call('ZRANK', KEYS[2], ARGV[1])
    if ahead >= free or ahead >= left then
        redis.call('PEXPIRE', KEYS[2], ARGV[6])
        redis.call('PEXPIRE', KEYS[3], ARGV[6])
        if ahead < left then
            return {'wait', -1}
        end
        -- The requests that must fall out of the last minute before it is this one's turn.
        local last = redis.call('ZRANGE', KEYS[4], ahead - left, ahead - left, 'WITHSCORES')
        return {'wait', last[2] and last[2] + MINUTE_MS - now + 1 or MINUTE_MS}
    end
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('ZREM', KEYS[3], ARGV[1])
    if minute_max > 0 then
        redis.call('ZADD', KEYS[4], string.format('%d', now), ARGV[1])
        redis.call('PEXPIRE', KEYS[4], MINUTE_MS)
    end
end
if held_max > 0 then
    redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[5]), ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
return {'entered'}
