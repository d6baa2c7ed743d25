-- cancel: store a cancel request and send it to the worker that holds the run.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] control  channel  keys.control
-- KEYS[3] queue    zset     keys.QUEUE; may be left out
-- KEYS[4..]                 of a run in a conversation, the thread's, see include/thread.lua
-- ARGV[1] message  str      the message for the worker
-- ARGV[2] reason   str      why, for people; '' or left out for none
-- ARGV[3] run_id   str      with KEYS[3]
-- ARGV[4] parked   str      the state of a parked run
-- ARGV[5] thread   json     see RunThread.args, '' or left out for none
-- Returns {'asked', worker}, {'ended'} or {'gone'}; worker is '' if no worker holds the run.
--
-- Safe to repeat; the first reason stays. The flag is stored, so a worker that claims the run later honours it. A parked
-- run becomes due, so that the next sweep or a worker ends it if the caller cannot: else neither would look at it early.
-- A run that waits for its turn leaves its thread in the same step, so it never becomes active.
local run, control, queue, thread_keys = KEYS[1], KEYS[2], KEYS[3], {unpack(KEYS, 4)}
local message, reason, run_id, parked, thread_json = ARGV[1], ARGV[2] or '', ARGV[3], ARGV[4], ARGV[5] or ''

local stored = redis.call('HMGET', run, 'created_at', 'worker', 'finished_at', 'cancel_reason', 'status')
local created_at, worker, finished_at, first_reason = stored[1], stored[2] or '', stored[3], stored[4]
local status = stored[5]
if not created_at then
    return {'gone'}
end
if finished_at then
    return {'ended'}
end
redis.call('HSET', run, 'cancel', 1)
if reason ~= '' and not first_reason then
    redis.call('HSET', run, 'cancel_reason', reason)
end
if queue and worker == '' and status == parked then
    local time = redis.call('TIME')
    redis.call('ZADD', queue, 'XX', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)), run_id)
end
if thread_json ~= '' then
    local time, args = redis.call('TIME'), cjson.decode(thread_json)
    local thread = open_thread(thread_keys, args, time[1] * 1000 + math.floor(time[2] / 1000))
    if thread.leave(run_id, 'left') then
        thread.touch(true)
    end
end
redis.call('PUBLISH', control, message)
return {'asked', worker}
