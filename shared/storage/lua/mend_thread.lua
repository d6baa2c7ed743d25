-- mend_thread: close the turn of a conversation's active run that is gone or ended past it, and start waiting runs.
--
-- KEYS[1] active_run hash    keys.run of the expected active run; any of its keys if none is expected
-- KEYS[2] outbox     stream  keys.outbox
-- KEYS[3] bell       list    keys.outbox_bell
-- KEYS[4] feed       stream  keys.feed, if the tenant is known
-- KEYS[5..]                  the last ones: the thread's, see include/thread.lua
-- ARGV[1] expected   str     the active run that the caller saw, or ''
-- ARGV[2] out        json    the messages of its result, or '' if its log is gone
-- ARGV[3] thread     json    see RunThread.args
-- ARGV[4] has_webhooks 0|1   the process has webhooks configured
-- Returns {what was done: 'none' | 'closed' | 'started' | 'gone', the run that is active now or ''}.
--
-- For the sweep. Nothing of this is needed unless keys were lost or deleted by hand. Also extends the TTL of the thread's
-- keys while runs are active or wait. Safe to repeat.
local first_of_thread = #KEYS - THREAD_KEYS + 1
local active_run, thread_keys = KEYS[1], {unpack(KEYS, first_of_thread)}
local expected, out, args = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local to = {outbox = KEYS[2], bell = KEYS[3], feed = first_of_thread > 4 and KEYS[4] or nil, has_webhooks = ARGV[4]}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local thread = open_thread(thread_keys, args, now_ms)
if not thread.exists() then
    thread.forget_busy()
    return {'gone', ''}
end
local active = redis.call('HGET', thread.record, 'active') or ''
local done = 'none'
if active == expected and active ~= '' then
    local next_active = close_gone(thread, active, active_run, {out = out ~= '' and out or nil}, to, now_ms)
    if next_active then
        active, done = next_active, 'closed'
    end
elseif active == '' and redis.call('LLEN', thread.line) > 0 then
    active = thread.activate_next() or ''
    done = 'started'
end
thread.touch(false)
return {done, active}
