-- keep_active: keep an active run in its tenant's and its user's lists, and its keys without a TTL.
--
-- KEYS[1] active            zset    keys.ACTIVE
-- KEYS[2] run               hash    keys.run
-- KEYS[3] runs              zset    keys.runs(tenant)
-- KEYS[4] active_of_tenant  zset    keys.active_of_tenant(tenant)
-- KEYS[5] tokens            hash    keys.tokens(tenant)
-- KEYS[6] runs_of_user      zset    keys.runs(tenant, user); the same as KEYS[3] without a user
-- KEYS[7..]                         the run's other keys
-- ARGV[1] run_id   str
-- ARGV[2] made_ms  int     the time inside the run's id
-- ARGV[3] life_ms  int     TTL of the tenant's lists
-- ARGV[4] tokens_ttl_ms int TTL of the tenant's count of tokens, which contains the run's reservation
-- Returns 1, or 0 if the run has ended.
--
-- For a run that is older than the lists' TTL allows for, and for one that an older version created, whose keys have
-- a TTL. Safe to repeat.
local active, run, runs, active_of_tenant = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local tokens, runs_of_user, other_keys = KEYS[5], KEYS[6], {unpack(KEYS, 7)}
local run_id, made_ms, life_ms, tokens_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local stored = redis.call('HMGET', run, 'created_at', 'finished_at')
if not redis.call('ZSCORE', active, run_id) or not stored[1] or stored[2] then
    return 0
end
for _, list in ipairs({runs, active_of_tenant, runs_of_user}) do
    redis.call('ZADD', list, made_ms, run_id)
    redis.call('PEXPIRE', list, life_ms)
end
redis.call('PEXPIRE', tokens, tokens_ttl_ms)
redis.call('PERSIST', run)
for _, key in ipairs(other_keys) do
    redis.call('PERSIST', key)
end
return 1
