-- list_due: runs that may be acquired now: those whose lease has expired, due retries, and new ones by virtual time.
--
-- KEYS[1] queue  zset  keys.QUEUE
-- KEYS[2] vtime  string  keys.VIRTUAL_TIME, of a partition; each run id in the reply is followed by its lag then
-- ARGV[1] limit  int   how many runs at most
-- ARGV[2] time_score_min int  scores from here on are times, lower ones are virtual times
-- Returns {ms until the next run is due, or -1, run id, ...}.
--
-- A lag is by how much a run's virtual time is ahead of that of the run which was acquired last; -1 for a run that has
-- begun. Virtual times of partitions cannot be compared, lags can.
-- Runs that have begun come first: their clients have seen a part of them, and there are never more of them
-- than workers had room for.
local queue, vtime_key = KEYS[1], KEYS[2]
local limit, time_score_min = tonumber(ARGV[1]), ARGV[2]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local reply = redis.call('ZRANGEBYSCORE', queue, time_score_min, now, 'LIMIT', 0, limit)
local begun = #reply
if begun < limit then
    local new = redis.call('ZRANGEBYSCORE', queue, '-inf', '(' .. time_score_min, 'LIMIT', 0, limit - begun)
    for _, run_id in ipairs(new) do
        table.insert(reply, run_id)
    end
end
if vtime_key then
    local vtime, with_lags = tonumber(redis.call('GET', vtime_key) or '0'), {}
    for place, run_id in ipairs(reply) do
        local score = place > begun and redis.call('ZSCORE', queue, run_id)
        table.insert(with_lags, run_id)
        table.insert(with_lags, score and string.format('%d', math.max(0, score - vtime)) or '-1')
    end
    reply = with_lags
end
local following = redis.call('ZRANGEBYSCORE', queue, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
table.insert(reply, 1, following[2] and string.format('%d', tonumber(following[2]) - now_ms) or '-1')
return reply
