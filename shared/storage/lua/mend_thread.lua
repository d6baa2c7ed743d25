-- mend_thread: close the turn of a conversation's active run that is gone or ended past it, and start waiting runs.
--
-- KEYS[1] active_run hash    keys.run of the expected active run; any of its keys if none is expected
-- KEYS[2..]                  the thread's, see include/thread.lua
-- ARGV[1] expected   str     the active run that the caller saw, or ''
-- ARGV[2] out        json    the messages that it came to, or '' if its log is gone
-- ARGV[3] thread     json    see RunThread.args
-- Returns {what was done: 'none' | 'closed' | 'started' | 'gone', the run that is active now or ''}.
--
-- For the sweep. Nothing of this is needed unless keys were lost or deleted by hand. Also extends the TTL of the thread's
-- keys while runs are active or wait. Safe to repeat.
local active_run, thread_keys = KEYS[1], {unpack(KEYS, 2)}
local expected, out, args = ARGV[1], ARGV[2], cjson.decode(ARGV[3])

local time = redis.call('TIME')
local thread = open_thread(thread_keys, args, time[1] * 1000 + math.floor(time[2] / 1000))
if not thread.exists() then
    thread.forget_busy()
    return {'gone', ''}
end
local active = redis.call('HGET', thread.record, 'active') or ''
local done = 'none'
if active == expected and active ~= '' then
    local stored = redis.call('HMGET', active_run, 'created_at', 'finished_at', 'status', 'last_id')
    if not stored[1] or stored[2] then
        active = thread.close(active, {status = stored[2] and stored[3] or 'lost', last_id = stored[4] or '',
            out = out ~= '' and out or nil}) or ''
        done = 'closed'
    end
elseif active == '' and redis.call('LLEN', thread.line) > 0 then
    active = thread.activate_next() or ''
    done = 'started'
end
thread.touch(false)
return {done, active}
