-- delete: remove the keys of a run that has ended, and leave a tombstone in place of its record.
--
-- KEYS[1] run        hash    keys.run
-- KEYS[2] active     zset    keys.ACTIVE
-- KEYS[3] runs       zset    keys.runs(tenant)
-- KEYS[4] running    zset    keys.RUNNING
-- KEYS[5] throttled  zset    keys.THROTTLED
-- KEYS[6] queue      zset    keys.QUEUE
-- KEYS[7] feed       stream  keys.feed(tenant)
-- KEYS[8..]                  every other key that the run may have, with its lease
-- ARGV[1] run_id     str
-- ARGV[2] tenant     str     that must own the run
-- ARGV[3] idempotency str    keys.idempotency, or '': it is the last of KEYS then, and is kept for as long as the tombstone
-- ARGV[4] ttl_ms     int     of the tombstone
-- Returns 'deleted', now or before; 'active' if the run has not ended or is not accounted; 'gone' if the tenant has no
-- such run.
--
-- The tombstone has none of a record's fields, so to every other script the run is gone, and none writes to it; create
-- alone looks for it, so that a repeated creation does not make the run again. account must come first: it settles the
-- run's tokens in the step that removes it from the active runs. Safe to repeat.
local run, active, runs, running, throttled = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local queue, feed, other_keys = KEYS[6], KEYS[7], {unpack(KEYS, 8)}
local run_id, tenant, idempotency, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local stored = redis.call('HMGET', run, 'tenant', 'finished_at', 'deleted_of')
local owner, finished_at, deleted_of = stored[1], stored[2], stored[3]
if deleted_of == tenant then
    return 'deleted'
end
if owner ~= tenant then
    return 'gone'
end
if not finished_at or redis.call('ZSCORE', active, run_id) then
    return 'active'
end
redis.call('ZREM', runs, run_id)
redis.call('ZREM', running, tenant .. ' ' .. run_id)
redis.call('ZREM', throttled, tenant .. ' ' .. run_id)
redis.call('ZREM', queue, run_id)
for _, key in ipairs(other_keys) do
    if key ~= idempotency then
        redis.call('DEL', key)
    end
end
-- After a failover the client's key may stand for another run by now.
if idempotency ~= '' and string.find(redis.call('GET', idempotency) or '', run_id, 1, true) == 1 then
    redis.call('PEXPIRE', idempotency, ttl_ms)
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
announce(run, run_id, {feed = feed}, {event = 'run_deleted', status = 'deleted', at = now_ms})
redis.call('DEL', run)
redis.call('HSET', run, 'deleted_of', tenant, 'deleted_at', string.format('%d', now_ms))
redis.call('PEXPIRE', run, ttl_ms)
return 'deleted'
