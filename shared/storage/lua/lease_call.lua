-- lease_call: let one client run a call for a while, so that two do not run it at once.
--
-- KEYS[1] run      hash     keys.run
-- KEYS[2] results  hash     keys.results
-- KEYS[3] control  channel  keys.control
-- KEYS[4] queue    zset     keys.QUEUE
-- KEYS[5] wakeup   list     keys.WAKEUP
-- ARGV[1] run_id   str
-- ARGV[2] result_field str  from call_results.result_field
-- ARGV[3] lease_field  str  from call_results.lease_field
-- ARGV[4] holder   str      the client
-- ARGV[5] lease_ms int
-- ARGV[6] once     0|1      whether only one client may ever run the call
-- ARGV[7] message  str      the message for the worker that holds the run
-- ARGV[8] wakeups_max int   the bound of the wake-up list
-- Returns {'leased', until in Unix ms}, {'held', until}, {'answered'}, {'ended'} or {'gone'}.
--
-- Safe to repeat: the holder's next lease renews its first. The lease decides who runs the call, never whose result
-- counts. If a lease on a call that runs once lapses, the run must fail the call, so it becomes due then: a worker that
-- holds it reads the lease, and a parked run's score follows the leases.
local run, results, control, queue, wakeup = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local run_id, result_field, lease_field, holder, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local once, message, wakeups_max = ARGV[6], ARGV[7], ARGV[8]

local stored = redis.call('HMGET', run, 'created_at', 'finished_at', 'worker', 'parked_due')
local created_at, finished_at, worker, parked_due = stored[1], stored[2], stored[3], tonumber(stored[4])
if not created_at then
    return {'gone'}
end
if redis.call('HEXISTS', results, result_field) == 1 then
    return {'answered'}
end
if finished_at then
    return {'ended'}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local function parse(lease)
    local until_ms, is_once, held_by = string.match(lease or '', '^(%d+) ([01]) (.*)$')
    return tonumber(until_ms), is_once == '1', held_by
end
local until_ms, _, held_by = parse(redis.call('HGET', results, lease_field))
if until_ms and held_by ~= holder and (once == '1' or until_ms > now_ms) then
    return {'held', string.format('%d', until_ms)}
end
until_ms = now_ms + lease_ms
redis.call('HSET', results, lease_field, string.format('%d', until_ms) .. ' ' .. once .. ' ' .. holder)
if once == '1' and worker and worker ~= '' then
    number_change(run, control, queue, wakeup, run_id, message, wakeups_max)
elseif once == '1' and parked_due and tonumber(redis.call('ZSCORE', queue, run_id) or '0') > now_ms then
    local due_ms = parked_due
    for _, field in ipairs(redis.call('HKEYS', results)) do
        local call = string.match(field, '^lease (.*)$')
        if call and redis.call('HEXISTS', results, 'result ' .. call) == 0 then
            local lapses_ms, is_once = parse(redis.call('HGET', results, field))
            due_ms = is_once and math.min(due_ms, lapses_ms) or due_ms
        end
    end
    redis.call('ZADD', queue, 'XX', string.format('%d', due_ms), run_id)
end
return {'leased', string.format('%d', until_ms)}
