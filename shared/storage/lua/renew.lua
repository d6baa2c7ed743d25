-- renew: renew a lease while the attempt owns the run.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from acquire
-- ARGV[3] attempt   int     from claim
-- ARGV[4] lease_ms  int
-- Returns {'ok', cancel, last_id} or {'lost'}.
--
-- A lease that expired while Redis was away, and that no other worker has acquired, is renewed: the attempt number
-- proves it. A run that was given back names no worker, so a late renewal does not lock it. Safe to repeat.
local queue, lease, run = KEYS[1], KEYS[2], KEYS[3]
local run_id, token, attempt, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local holder = redis.call('GET', lease)
local stored = redis.call('HMGET', run, 'attempt', 'cancel', 'last_id', 'finished_at', 'worker')
local stored_attempt, cancel, last_id = stored[1], stored[2] or '0', stored[3]
local finished_at, worker = stored[4], stored[5]
if (holder and holder ~= token) or stored_attempt ~= attempt or finished_at or worker == '' then
    return {'lost'}
end
local time = redis.call('TIME')
local lease_end_ms = time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms
redis.call('SET', lease, token, 'PX', lease_ms)
redis.call('ZADD', queue, 'XX', string.format('%d', lease_end_ms), run_id)
return {'ok', cancel, last_id}
