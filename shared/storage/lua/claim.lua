-- claim: start a run's next attempt, which fences all older ones.
--
-- KEYS[1] run          hash    keys.run
-- KEYS[2] stages       list    keys.stages
-- KEYS[3] reserved     hash    keys.RESERVED
-- KEYS[4] lease        string  keys.lease, with a token or the guard 'lease'
-- KEYS[5] thread       hash    keys.thread, with a token, if the job names the thread of the run
-- KEYS[6] queue        zset    keys.QUEUE, likewise
-- ARGV[1] worker       str     the name of the claiming worker, '' for a gateway or the sweep
-- ARGV[2] status       str     the state of a claimed run
-- ARGV[3] guard        str     'worker': not if the run names a worker; 'lease': not if it has a lease; '': always
-- ARGV[4] token        str     from acquire, with KEYS[4]
-- ARGV[5] run_id       str
-- ARGV[6] has_webhooks 0|1   the process has webhooks configured, which have to be told of the run from now on
-- ARGV[7] never_score  int     the score of a run that waits for its turn
-- Returns {'claimed', attempt, last_id, tries, cancel, now_ms, the record's fields and values, stage ids, the tokens
-- reserved for the run},
-- {'held', worker}, {'fenced'}, {'waits'}, {'thread', key}: claim again with this thread, {'ended'} or {'gone'}.
--
-- With a token, that token must hold the lease. An expired lease is not enough: Redis may have lost the acquire
-- with its tail, so that the queue still has the run's old score. If the run was parked, no worker looks at it
-- before that score is due, and a claim whose worker died would leave it there.
-- A worker may not claim a run that waits for its turn in a thread; its entry in the queue may have been lost and made
-- again. Such a run is given back in this step: a second one could undo that its turn came in between. If the thread is
-- gone, nothing else can be active in it. Gateway and sweep, which claim a run to end it, may claim a waiting one.
-- An attempt number is never used twice, even if the claim that took it is lost with the log's tail: the number
-- is at least the ms since the run was created, by this server's clock.
-- A claim counts as a retry only if another worker's name is still in the record (it crashed): a worker that
-- gives a run back removes its name. Safe to repeat: the same worker's next claim does not count.
-- If the stages key has the wrong type, treat it as empty, so that the claim can end the run.
-- The time that the run was parked is summed up, since it does not count towards the run's time limit.
local run, stages, reserved, lease, thread, queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local worker, status, guard, token, run_id = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local has_webhooks, never_score = ARGV[6] == '1', ARGV[7]

local stored = redis.call('HMGET', run, 'attempt', 'created_at', 'last_id', 'tries', 'cancel', 'worker',
    'finished_at', 'started_at', 'parked_at', 'parked_ms', 'tenant', 'thread')
local last_attempt, created_at, last_id, tries, cancel = stored[1], stored[2], stored[3], tonumber(stored[4]), stored[5]
local holder, finished_at, started_at = stored[6] or '', stored[7], stored[8]
local parked_at, parked_ms = stored[9], tonumber(stored[10] or '0')
if not created_at then
    return {'gone'}
end
if finished_at then
    return {'ended'}
end
if token ~= '' and redis.call('GET', lease) ~= token then
    return {'fenced'}
end
if token ~= '' and stored[12] then
    if thread ~= stored[12] then
        return {'thread', stored[12]}
    end
    local active = redis.pcall('HGET', thread, 'active') -- a table if the key has the wrong type: the run can still end
    if type(active) == 'string' and active ~= run_id then
        redis.call('ZADD', queue, 'XX', never_score, run_id)
        redis.call('DEL', lease)
        return {'waits'}
    end
end
if (guard == 'worker' and holder ~= '') or (guard == 'lease' and redis.call('EXISTS', lease) == 1) then
    return {'held', holder}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local attempt = string.format('%d', math.max(tonumber(last_attempt) + 1, now_ms - tonumber(created_at)))
if holder ~= '' and holder ~= worker then
    tries = tries + 1
end
redis.call('HSET', run, 'attempt', attempt, 'tries', tries, 'status', status, 'worker', worker)
if has_webhooks then
    redis.call('HSET', run, 'has_webhooks', 1)
end
if parked_at then
    parked_ms = parked_ms + math.max(0, now_ms - tonumber(parked_at))
    redis.call('HSET', run, 'parked_ms', string.format('%d', parked_ms))
    redis.call('HDEL', run, 'parked_at')
end
if not started_at and guard == '' then
    redis.call('HSET', run, 'started_at', now)
end
local stage_ids = redis.pcall('LRANGE', stages, 0, -1)
if stage_ids.err then
    if not string.find(stage_ids.err, 'WRONGTYPE', 1, true) then
        return stage_ids
    end
    stage_ids = {}
end
local held = redis.call('HGET', reserved, (stored[11] or '') .. ' ' .. run_id) or '0'
return {'claimed', attempt, last_id, tries, cancel or '0', now, redis.call('HGETALL', run), stage_ids, held}
