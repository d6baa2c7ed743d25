-- append: put a batch of events at the end of a run's log, if the attempt still owns the run.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] live     channel  keys.live
-- KEYS[3] stages   list     keys.stages
-- KEYS[4..] streams         keys.stage_stream; with a terminal event every stream of the run
-- ARGV[1] attempt  int      from claim
-- ARGV[2] before   id       the log's last id before the batch
-- ARGV[3] message  bytes    the batch for the live channel, see shared/log/live_batch.py
-- ARGV[4] ttl_ms   int      of a stream that this batch begins
-- ARGV[5] status   str      '' or the state that a terminal event in this batch ends the run in
-- ARGV[6] error    json     '' or the error of that end
-- ARGV[7] usage    json     '' or the run's usage
-- ARGV[8] retention_ms int  TTL of every key from the end on
-- ARGV[9..] the stage id of each stream in KEYS, then for each event: number of its stream, name, data
-- Returns {'ok', last_id, cancel}, {'behind', last_id}, {'fenced', attempt} or {'ended'}.
--
-- Safe to repeat: events that stand already are skipped, since the producer sends again
-- when our reply was lost.
local stored = redis.call('HMGET', KEYS[1], 'attempt', 'last_id', 'cancel', 'finished_at')
if not stored[1] then
    return {'ended'}
end
if stored[1] ~= ARGV[1] then
    return {'fenced', stored[1]}
end
local streams = #KEYS - 3
local first = 9 + streams
local count = (#ARGV - first + 1) / 3
local before = tonumber(string.match(ARGV[2], '-(%d+)$'))
local skip = 0
if stored[2] ~= ARGV[2] then
    local attempt, sequence = string.match(stored[2], '^(%d+)-(%d+)$')
    skip = tonumber(sequence) - before
    if attempt ~= ARGV[1] or skip < 0 then
        return {'behind', stored[2]}
    end
end
if skip >= count then
    return {'ok', stored[2], stored[3] or '0'}
end
if stored[4] then
    return {'ended'}
end
-- Once: a stream that was lost is listed already, and readers of a list that names it twice have its events twice.
local function enlist(i)
    for _, stage in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
        if stage == ARGV[5 + i] then
            return
        end
    end
    redis.call('RPUSH', KEYS[3], ARGV[5 + i])
end
-- The end is told whatever became of the keys: what is no part of a log any more goes out of its way.
if ARGV[5] ~= '' then
    for i = 3, #KEYS do
        local read = i == 3 and redis.pcall('LRANGE', KEYS[i], 0, 0) or redis.pcall('XRANGE', KEYS[i], '-', '-')
        if read.err and string.find(read.err, 'WRONGTYPE', 1, true) then
            redis.call('DEL', KEYS[i])
        end
    end
end
local seen = {}
for i = skip, count - 1 do
    local at = first + 3 * i
    local stream = KEYS[3 + ARGV[at]]
    local is_new = not seen[stream] and redis.call('EXISTS', stream) == 0
    seen[stream] = true
    redis.call('XADD', stream, ARGV[1] .. '-' .. before + i + 1, 'event', ARGV[at + 1], 'data', ARGV[at + 2])
    if is_new then
        enlist(3 + ARGV[at])
        redis.call('PEXPIRE', stream, ARGV[4])
        redis.call('PEXPIRE', KEYS[3], ARGV[4])
    end
end
local last_id = ARGV[1] .. '-' .. before + count
redis.call('HSET', KEYS[1], 'last_id', last_id)
if ARGV[5] ~= '' then
    local time = redis.call('TIME')
    redis.call('HSET', KEYS[1], 'status', ARGV[5], 'worker', '', 'error', ARGV[6], 'usage', ARGV[7],
        'finished_at', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
    for i = 4, #KEYS do
        if redis.call('EXISTS', KEYS[i]) == 1 then
            enlist(i)
        end
    end
    for i, key in ipairs(KEYS) do
        if i ~= 2 then
            redis.call('PEXPIRE', key, ARGV[8])
        end
    end
end
-- After a partial skip the message's frames do not follow the log's last id: subscribers
-- see that by the id before them and read the log.
redis.call('PUBLISH', KEYS[2], ARGV[3])
return {'ok', last_id, stored[3] or '0'}
