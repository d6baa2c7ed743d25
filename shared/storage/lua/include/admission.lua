-- admit_to_thread: return nil if a new run may join its thread, else the reply that refuses it.
-- join_thread: let the run join, and return whether it is active.
--
-- Their text precedes that of create, after those of thread and close_gone.
-- ask: the request, see create: messages, on_active, parent, expected_active, expected_interrupt, the limits.
-- others: the records that the request named: the expected active run's, its control channel, the expected interrupt's.
-- to: where a run is reported that turns out to be gone, see close_gone.
local ON_ACTIVE_WAITS = {enqueue = true, interrupt = true, steer = true}

local function waiting_interrupt(thread)
    for _, run_id in ipairs(redis.call('LRANGE', thread.line, 0, -1)) do
        if redis.call('HGET', thread.turns, 'w:' .. run_id) == 'interrupt' then
            return run_id
        end
    end
    return ''
end

local function parent_refusal(thread, parent, active)
    if parent == '' or parent == 'root' then
        return
    end
    local stored = redis.call('HMGET', thread.turns, 'n:' .. parent, 's:' .. parent, 'w:' .. parent)
    local is_turn, has_ended, waits = stored[1], stored[2], ON_ACTIVE_WAITS[string.match(stored[3] or '', '^%a+')]
    if not is_turn and not waits then
        return {'parent_not_found', '', ''}
    end
    if not has_ended and parent ~= active then
        return {'parent_not_ended', '', ''}
    end
end

local function admit_to_thread(thread, ask, others, to, now_ms)
    local stored = redis.call('HMGET', thread.record, 'deleting', 'active', 'count', 'bytes')
    local deleting, active, count, bytes = stored[1], stored[2] or '', tonumber(stored[3] or '0'), tonumber(stored[4] or '0')
    if deleting then
        return {'thread_deleting', '', ''}
    end
    if active == '' and redis.call('LLEN', thread.line) > 0 then
        active = thread.activate_next()
    end
    local interrupt = ask.on_active == 'interrupt' and waiting_interrupt(thread) or ''
    if active ~= '' then
        if active ~= ask.expected_active or interrupt ~= ask.expected_interrupt then
            return {'expected', active, interrupt}
        end
        -- A run that disappeared, or ended past its thread, would keep the thread busy forever.
        local next_active = close_gone(thread, active, others[1], {}, to, now_ms)
        if next_active then
            active = next_active
            thread.touch(true)
            if active ~= '' then
                return {'expected', active, interrupt}
            end
        end
    end
    if count >= ask.turns_max or bytes + #ask.messages > ask.bytes_max
        or redis.call('HLEN', thread.turns) >= ask.fields_max then
        return {'thread_full', '', ''}
    end
    local refusal = parent_refusal(thread, ask.parent, active)
    if refusal then
        return refusal
    end
    if active ~= '' and ask.on_active == 'reject' then
        return {'busy', active, redis.call('HGET', others[1], 'digest') or ''}
    end
    if active ~= '' and interrupt == '' and redis.call('LLEN', thread.line) >= ask.waiting_max then
        return {'too_many_waiting', ask.waiting_max, ''}
    end
end

-- Cancels the active run. An interrupt that waits already never becomes a turn: the latest one counts. Runs that were to
-- steer either of them steer the new one; else they would be answered after it, though they are older.
local function interrupt_thread(thread, run_id, ask, others)
    for _, cancelled in ipairs({others[1], others[3]}) do
        local stored = redis.call('HMGET', cancelled, 'created_at', 'status')
        if stored[1] then
            redis.call('HSET', cancelled, 'cancel', 1)
            redis.call('HSETNX', cancelled, 'cancel_reason', ask.cancel_reason)
        end
        if stored[2] == ask.parked then
            thread.make_due(ask.expected_active) -- as cancel does
        end
    end
    redis.call('PUBLISH', others[2], ask.cancel_message)
    if ask.expected_interrupt ~= '' then
        thread.leave(ask.expected_interrupt, 'left')
    end
    for _, waiting in ipairs(redis.call('LRANGE', thread.line, 0, -1)) do
        local how = redis.call('HGET', thread.turns, 'w:' .. waiting)
        if how == 'steer:' .. ask.expected_active or how == 'steer:' .. ask.expected_interrupt then
            redis.call('HSET', thread.turns, 'w:' .. waiting, 'steer:' .. run_id)
        end
    end
    redis.call('LPUSH', thread.line, run_id)
end

local function join_thread(thread, run_id, ask, others, now)
    if not thread.exists() then
        redis.call('HSET', thread.record, 'tenant', ask.tenant, 'user', ask.user, 'thread_id', ask.thread_id,
            'gen', ask.gen, 'created_at', now, 'active', '', 'head', '', 'next_seq', 0, 'bytes', 0, 'count', 0)
    end
    thread.add_messages(run_id, thread.messages_in, ask.messages)
    redis.call('HINCRBY', thread.record, 'count', 1)
    if ask.parent ~= '' then
        redis.call('HSET', thread.turns, 'p:' .. run_id, ask.parent == 'root' and '' or ask.parent)
    end
    local active = redis.call('HGET', thread.record, 'active')
    if active == '' then
        thread.activate(run_id)
    else
        local how = ask.on_active == 'steer' and 'steer:' .. active or ask.on_active
        redis.call('HSET', thread.turns, 'w:' .. run_id, how)
        if ask.on_active == 'interrupt' then
            interrupt_thread(thread, run_id, ask, others)
        else
            redis.call('RPUSH', thread.line, run_id)
        end
        thread.announce('waiting ' .. run_id)
    end
    thread.touch(true)
    return active == ''
end
