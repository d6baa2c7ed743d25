-- admit: remove a run from its tenant's running ones and make throttled runs due in its place.
--
-- KEYS[1] run       hash    keys.run
-- KEYS[2] queue     zset    keys.QUEUE
-- KEYS[3] running   zset    keys.RUNNING
-- KEYS[4] throttled zset    keys.THROTTLED
-- KEYS[5] vtime     string  keys.VIRTUAL_TIME
-- KEYS[6] wakeup    list    keys.WAKEUP
-- KEYS[7] lease     string  keys.lease, unless the run has ended
-- ARGV[1] run_id    str
-- ARGV[2] tenant    str     used if the record is gone, else ''
-- ARGV[3] runs_running int  the limit of a tenant without its own; 0: none
-- ARGV[4] wakeups_max  int  the bound of the wake-up list
-- ARGV[5] limits   str   keys.LIMITS, a hash; not in KEYS, because the Redis users may only read it
-- Returns how many runs were admitted.
--
-- A run that ended while it was throttled becomes due, so that a worker removes it from the queue. An admitted run
-- is next in line: it has waited beyond its virtual time. A run that was given back, and that another worker acquired
-- before this call, still runs and stays counted. Safe to repeat; the sweep repeats it for processes that died.
local run, queue, running, throttled = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local vtime_key, wakeup, lease = KEYS[5], KEYS[6], KEYS[7]
local run_id, given_tenant, runs_running, wakeups_max, limits = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local stored = redis.call('HMGET', run, 'tenant', 'finished_at')
local tenant, has_ended = stored[1] or given_tenant, stored[2]
local member = tenant .. ' ' .. run_id
local from, to = '[' .. tenant .. ' ', '(' .. tenant .. '!'
local vtime = redis.call('GET', vtime_key) or '0'
if not lease or not stored[1] or has_ended or redis.call('EXISTS', lease) == 0 then
    redis.call('ZREM', running, member)
end
if has_ended and redis.call('ZREM', throttled, member) == 1 then
    redis.call('ZADD', queue, 'XX', vtime, run_id)
end
local limit = tenant_limit(limits, tenant, 'runs_running', runs_running)
local free = limit > 0 and limit - redis.call('ZLEXCOUNT', running, from, to) or 1000
local admitted = redis.call('ZRANGEBYLEX', throttled, from, to, 'LIMIT', 0, math.max(0, free))
for _, admitted_member in ipairs(admitted) do
    redis.call('ZREM', throttled, admitted_member)
    local admitted_id = string.sub(admitted_member, #tenant + 2)
    redis.call('ZADD', queue, 'XX', vtime, admitted_id)
    redis.call('RPUSH', wakeup, admitted_id)
end
redis.call('LTRIM', wakeup, -wakeups_max, -1)
return #admitted
