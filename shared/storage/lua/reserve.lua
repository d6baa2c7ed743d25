-- reserve: reserve further tokens of its tenant's day for a run, as far as the tenant's limit allows.
--
-- KEYS[1] run       hash  keys.run
-- KEYS[2] tokens    hash  keys.tokens(tenant)
-- KEYS[3] reserved  hash  keys.RESERVED
-- ARGV[1] run_id    str
-- ARGV[2] tenant    str
-- ARGV[3] attempt   int   from claim
-- ARGV[4] wanted    int   how many tokens the run wants to have reserved in total
-- ARGV[5] tokens_per_day int  the limit of a tenant without its own; 0: none
-- ARGV[6] ttl_ms    int   of the tenant's count
-- ARGV[7] limits    str   keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- Returns {'ok', how many the run has reserved in total, the tenant's limit}, {'fenced', attempt} or {'ended'}.
--
-- Safe to repeat, since the wanted number is a total. account settles the reservation.
local run, tokens, reserved = KEYS[1], KEYS[2], KEYS[3]
local run_id, tenant, attempt, wanted = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local tokens_per_day, ttl_ms, limits = ARGV[5], ARGV[6], ARGV[7]

local stored = redis.call('HMGET', run, 'attempt', 'finished_at')
if not stored[1] or stored[2] then
    return {'ended'}
end
if stored[1] ~= attempt then
    return {'fenced', stored[1]}
end
local member = tenant .. ' ' .. run_id
local held = tonumber(redis.call('HGET', reserved, member) or '0')
local limit = tenant_limit(limits, tenant, 'tokens_per_day', tokens_per_day)
local further = math.max(0, wanted - held)
if limit > 0 then
    local day = math.floor(redis.call('TIME')[1] / 86400)
    further = math.min(further, math.floor(tokens_left(tokens, limit, day)))
end
if further > 0 then
    redis.call('HINCRBY', reserved, member, string.format('%d', further))
    redis.call('HINCRBY', tokens, 'reserved', string.format('%d', further))
    redis.call('PEXPIRE', tokens, ttl_ms)
end
return {'ok', held + further, limit}
