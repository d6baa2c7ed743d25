-- close_gone: close the turn of a conversation's active run if that run is gone, or ended past its thread.
--
-- Its text precedes that of each script that uses it, after those of announce and thread. A gone run is reported as lost
-- from the thread's record, which has its owner too. Its own webhook_url and its last event are no longer known.
-- run: the record of the active run.
-- turn: out, the messages of its result, JSON, or nil.
-- to: see announce; has_webhooks says that the process has webhooks configured.
-- Returns the run that is active now, or ''; nil if the active run is alive.
local function close_gone(thread, active, run, turn, to, now_ms)
    local stored = redis.call('HMGET', run, 'created_at', 'finished_at', 'status', 'last_id')
    local created_at, finished_at = stored[1], stored[2]
    if created_at and not finished_at then
        return
    end
    turn.status, turn.last_id = finished_at and stored[3] or 'lost', stored[4] or ''
    local next_run = thread.close(active, turn) or ''
    if not finished_at then
        announce(thread.record, active, to, {event = 'run_ended', type = 'run.ended', status = turn.status, attempt = 0,
            at = now_ms})
    end
    return next_run
end
