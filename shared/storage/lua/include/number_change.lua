-- number_change: number a change that the run waits for, send it to the run's worker, and make the run due if it has none.
--
-- Its text precedes that of each script that uses it. A number is never used twice, even if the change that had it is
-- lost with Redis's tail: it is at least the ms since the run was created, by this server's clock. So one comparison
-- tells a worker that parks the run whether it has read every change.
local function number_change(run, control, queue, wakeup, run_id, message, wakeups_max)
    local stored = redis.call('HMGET', run, 'created_at', 'news', 'worker')
    local time = redis.call('TIME')
    local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    local news = math.max(tonumber(stored[2] or '0') + 1, now_ms - tonumber(stored[1]))
    redis.call('HSET', run, 'news', string.format('%d', news))
    redis.call('PUBLISH', control, message)
    if not stored[3] or stored[3] == '' then
        redis.call('ZADD', queue, 'XX', string.format('%d', now_ms), run_id)
        redis.call('RPUSH', wakeup, run_id)
        redis.call('LTRIM', wakeup, -wakeups_max, -1)
    end
end
