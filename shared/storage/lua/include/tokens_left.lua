-- tokens_left: return how many of a tenant's tokens of the day are neither used nor reserved, and those used.
--
-- Its text precedes that of each script that uses it. Reserved tokens belong to no day: a run counts on the day on
-- which it ends.
local function tokens_left(tokens, limit, day)
    local stored = redis.call('HMGET', tokens, 'day', 'used', 'reserved')
    local used = tonumber(stored[1]) == day and tonumber(stored[2]) or 0
    return math.max(0, limit - used - tonumber(stored[3] or '0')), used
end
