-- delete: remove the keys of a run that has ended, and leave a tombstone in place of its record.
--
-- KEYS[1] run        hash    keys.run
-- KEYS[2] active     zset    keys.ACTIVE
-- KEYS[3] runs       zset    keys.runs(tenant)
-- KEYS[4] running    zset    keys.RUNNING
-- KEYS[5] throttled  zset    keys.THROTTLED
-- KEYS[6] queue      zset    keys.QUEUE
-- KEYS[7] feed       stream  keys.feed(tenant)
-- KEYS[8] runs_of_user  zset keys.runs(tenant, user); the same as KEYS[3] without a user
-- KEYS[9..]                  every other key that the run may have, with its lease; then, of a run in a conversation, the
--                            thread's, see include/thread.lua
-- ARGV[1] run_id     str
-- ARGV[2] tenant     str     that must own the run
-- ARGV[3] idempotency str    keys.idempotency, or '': it is one of KEYS then, and is kept for as long as the tombstone
-- ARGV[4] ttl_ms     int     of the tombstone
-- ARGV[5] thread     json    see RunThread.args, or ''
-- ARGV[6] user       str     only if the run must be this user's
-- Returns 'deleted', now or before; 'active' if the run has not ended or is not accounted; 'gone' if the owner has no
-- such run.
--
-- The tombstone has none of a record's fields, so to every other script the run is gone, and none writes to it; create
-- alone looks for it, so that a repeated creation does not make the run again. account must come first: it settles the
-- run's tokens in the step that removes it from the active runs. The run's turn in its thread loses its messages and keeps
-- its place, for its children and for cursors. Safe to repeat.
local run, active, runs, running, throttled = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local queue, feed, runs_of_user, other_keys = KEYS[6], KEYS[7], KEYS[8], {unpack(KEYS, 9)}
local run_id, tenant, idempotency, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local thread_json, user = ARGV[5], ARGV[6]

local stored = redis.call('HMGET', run, 'tenant', 'user', 'finished_at', 'deleted_of', 'deleted_user')
local of_user = stored[2]
if is_owned({stored[4], stored[5]}, tenant, user and user ~= '' and redis.sha1hex(user) or user) then
    return 'deleted'
end
if not is_owned(stored, tenant, user) then
    return 'gone'
end
if not stored[3] or redis.call('ZSCORE', active, run_id) then
    return 'active'
end
redis.call('ZREM', runs, run_id)
redis.call('ZREM', runs_of_user, run_id)
redis.call('ZREM', running, tenant .. ' ' .. run_id)
redis.call('ZREM', throttled, tenant .. ' ' .. run_id)
redis.call('ZREM', queue, run_id)
for at = 1, #other_keys - (thread_json ~= '' and THREAD_KEYS or 0) do
    if other_keys[at] ~= idempotency then
        redis.call('DEL', other_keys[at])
    end
end
-- After a failover the client's key may stand for another run by now.
if idempotency ~= '' and string.find(redis.call('GET', idempotency) or '', run_id, 1, true) == 1 then
    redis.call('PEXPIRE', idempotency, ttl_ms)
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if thread_json ~= '' then
    local thread_keys = {unpack(other_keys, #other_keys - THREAD_KEYS + 1)}
    open_thread(thread_keys, cjson.decode(thread_json), now_ms).forget_run(run_id)
end
announce(run, run_id, {feed = feed}, {event = 'run_deleted', status = 'deleted', at = now_ms})
redis.call('DEL', run)
redis.call('HSET', run, 'deleted_of', tenant, 'deleted_at', string.format('%d', now_ms))
if of_user then
    redis.call('HSET', run, 'deleted_user', redis.sha1hex(of_user))
end
redis.call('PEXPIRE', run, ttl_ms)
return 'deleted'
