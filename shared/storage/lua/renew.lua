-- renew: keep a lease, and the run's keys alive, while its attempt owns the run.
--
-- KEYS[1] queue     zset    keys.QUEUE
-- KEYS[2] lease     string  keys.lease
-- KEYS[3] run       hash    keys.run
-- KEYS[4..]         the run's other keys; their TTLs are renewed with the record's
-- ARGV[1] run_id    str
-- ARGV[2] token     str     from take
-- ARGV[3] attempt   int     from claim
-- ARGV[4] lease_ms  int
-- ARGV[5] ttl_ms    int     0: leave the TTLs as they are
-- Returns {'ok', cancel, last_id} or {'lost'}.
--
-- A lease that ran out while Redis was away, and that nobody took since, is taken up
-- again: the attempt tells. A run that was given back names no worker, so a renewal that
-- was on its way just then does not lock it. Safe to repeat.
local holder = redis.call('GET', KEYS[2])
local stored = redis.call('HMGET', KEYS[3], 'attempt', 'cancel', 'last_id', 'finished_at', 'worker')
if (holder and holder ~= ARGV[2]) or stored[1] ~= ARGV[3] or stored[4] or stored[5] == '' then
    return {'lost'}
end
local time = redis.call('TIME')
local lease_end = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4]
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
redis.call('ZADD', KEYS[1], 'XX', string.format('%d', lease_end), ARGV[1])
if ARGV[5] ~= '0' then
    for i = 3, #KEYS do
        redis.call('PEXPIRE', KEYS[i], ARGV[5])
    end
end
return {'ok', stored[2] or '0', stored[3]}
