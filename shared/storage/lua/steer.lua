-- steer: let the messages of a waiting run join the active run of its conversation, and end the waiting run.
--
-- KEYS[1] run       hash     keys.run of the active run
-- KEYS[2] live      channel  keys.live
-- KEYS[3] stages    list     keys.stages
-- KEYS[4] journal   stream   keys.stage_stream(run)
-- KEYS[5] joining   hash     keys.run of the waiting run
-- KEYS[6] joining_live    channel
-- KEYS[7] joining_stages  list
-- KEYS[8] joining_journal stream
-- KEYS[9] outbox    stream   keys.outbox
-- KEYS[10] bell     list     keys.outbox_bell
-- KEYS[11] feed     stream   keys.feed
-- KEYS[12..]                 the thread's, see include/thread.lua
-- ARGV[1] attempt   int      from claim
-- ARGV[2] before    id       the log's last id; everything that the attempt produced is in the log
-- ARGV[3] message   bytes    the event for the live channel
-- ARGV[4] stage     str      the journal's stage id
-- ARGV[5] event     str      message_added
-- ARGV[6] data      json
-- ARGV[7] run_id    str      the active run
-- ARGV[8] joining_id str     the waiting run
-- ARGV[9] end       json     what the end sets in the waiting run's record, as in append
-- ARGV[10] done     json     the payload of its terminal event, which names the event in the active run's log
-- ARGV[11] thread   json     see RunThread.args
-- Returns {'ok', last_id, cancel}, {'gone'} if the run no longer waits to join this one, {'behind', last_id},
-- {'fenced', attempt} or {'ended'}.
--
-- One step, since a message must neither be said twice nor be lost. The waiting run must still wait for this very run: it
-- may have been cancelled or deleted, or an interrupt may have taken it over. Safe to repeat: the event is recognised by
-- its place and its run.
local run, live, stages, journal = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local joining, joining_live, joining_stages, joining_journal = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local told, thread_keys = {outbox = KEYS[9], bell = KEYS[10], feed = KEYS[11]}, {unpack(KEYS, 12)}
local attempt, before, message, stage, event, data = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local run_id, joining_id, last, done, args = ARGV[7], ARGV[8], cjson.decode(ARGV[9]), ARGV[10], cjson.decode(ARGV[11])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local stored = redis.call('HMGET', run, 'attempt', 'last_id', 'cancel', 'finished_at')
local stored_attempt, stored_last_id, cancel, finished_at = stored[1], stored[2], stored[3] or '0', stored[4]
if not stored_attempt or finished_at then
    return {'ended'}
end
if stored_attempt ~= attempt then
    return {'fenced', stored_attempt}
end
local thread = open_thread(thread_keys, args, now_ms)
local how = redis.call('HGET', thread.turns, 'w:' .. joining_id)
local last_id = attempt .. '-' .. string.match(before, '-(%d+)$') + 1
if stored_last_id == last_id and how == 'merged:' .. run_id then
    return {'ok', stored_last_id, cancel}
end
if stored_last_id ~= before then
    return {'behind', stored_last_id}
end
local waiting = redis.call('HMGET', joining, 'attempt', 'created_at', 'last_id', 'finished_at')
if how ~= 'steer:' .. run_id or cancel == '1' or not waiting[2] or waiting[4] then
    return {'gone'}
end
if not thread.leave(joining_id, 'merged:' .. run_id) then
    return {'gone'}
end
if redis.call('EXISTS', journal) == 0 then
    redis.call('RPUSH', stages, stage)
end
redis.call('XADD', journal, last_id, 'event', event, 'data', data)
redis.call('HSET', run, 'last_id', last_id)

-- As claim and append do: the attempt is greater than all before, even after a lost tail.
local joining_attempt = string.format('%d', math.max(tonumber(waiting[1]) + 1, now_ms - tonumber(waiting[2])))
local joining_last_id = joining_attempt .. '-' .. string.match(waiting[3], '-(%d+)$') + 1
redis.call('XADD', joining_journal, joining_last_id, 'event', 'done', 'data', done)
redis.call('HSET', joining, 'status', last.status, 'attempt', joining_attempt, 'last_id', joining_last_id, 'worker', '',
    'error', last.error, 'usage', last.usage, 'finish_reason', last.finish_reason, 'finished_at', now,
    'merged_into', run_id)
redis.call('PEXPIRE', joining_journal, last.retention_ms)
redis.call('PEXPIRE', joining_stages, last.retention_ms)
thread.dequeue(joining_id)
thread.touch(true)
announce(joining, joining_id, told, {event = 'run_ended', type = 'run.ended', status = last.status,
    event_id = joining_last_id, attempt = joining_attempt, at = now_ms})
redis.call('PUBLISH', live, message)
-- In the format of shared/log/live_batch.py.
redis.call('PUBLISH', joining_live, waiting[3] .. ' ' .. joining_last_id .. ' end ' .. stage .. ':1\nid: '
    .. joining_last_id .. '\nevent: done\ndata: ' .. done .. '\n\n')
return {'ok', last_id, cancel}
