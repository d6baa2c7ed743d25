-- open_thread: return a conversation, whose functions make its runs active, close its turns, and remove waiting runs.
--
-- Its text precedes that of each script that uses it, after that of virtual_time. It is one function, so a script that
-- has no thread pays for one closure.
-- key_list: keys.thread, thread_turns, thread_in, thread_out, thread_line, thread_order, thread_live, threads_busy,
--   threads_of_tenant, QUEUE, WAKEUP, VIRTUAL_TIME, tenant_virtual_time (shared/storage/thread_keys.py).
-- args: ttl_ms of the thread's keys; life_ms of the virtual times; wakeups_max; never_score, of a waiting run.
-- now_ms: Redis's time.
--
-- A run must be able to end, and the next one to begin, even if keys of its thread were damaged: keys of a wrong type are
-- deleted.
-- The record of a run that becomes active is not touched, since the script cannot name its key beforehand.
local THREAD_KEYS = 13
local function open_thread(key_list, args, now_ms)
    local record, turns, messages_in, messages_out, line, order, live = unpack(key_list, 1, 7)
    local busy, threads, queue, wakeup, vtime_key, tenant_vtime_key = unpack(key_list, 8, 13)
    local now = string.format('%d', now_ms)
    local thread = {record = record, turns = turns, messages_in = messages_in, line = line}
    for _, probe in ipairs({{'HEXISTS', record, ''}, {'HEXISTS', turns, ''}, {'HEXISTS', messages_in, ''},
        {'HEXISTS', messages_out, ''}, {'LLEN', line}, {'ZCARD', order}, {'ZCARD', threads}, {'SREM', busy, ''}}) do
        local reply = redis.pcall(unpack(probe))
        if type(reply) == 'table' and reply.err and string.find(reply.err, 'WRONGTYPE', 1, true) then
            redis.call('DEL', probe[2])
        end
    end

    -- The messages of the channel are for readers that wait; they read the thread whenever one comes.
    function thread.announce(change)
        redis.call('PUBLISH', live, change)
    end

    function thread.exists()
        return redis.call('HEXISTS', record, 'gen') == 1
    end

    -- Extends the TTL of all keys, which are in use now.
    function thread.touch(is_activity)
        for _, key in ipairs({record, turns, messages_in, messages_out, line, order}) do
            redis.call('PEXPIRE', key, args.ttl_ms)
        end
        if is_activity then
            redis.call('HSET', record, 'updated_at', now)
            redis.call('ZADD', threads, now, record)
            redis.call('ZREMRANGEBYSCORE', threads, '-inf', string.format('%d', now_ms - args.ttl_ms))
        end
        redis.call('PEXPIRE', threads, args.ttl_ms)
        local stored = redis.call('HMGET', record, 'active', 'deleting')
        local is_busy = (stored[1] or '') ~= '' or stored[2] or redis.call('LLEN', line) > 0
        if is_busy then
            redis.call('SADD', busy, record)
        else
            redis.call('SREM', busy, record)
        end
    end

    -- Makes a run the active one. Its parent is fixed now: the one that its request named, or the head.
    function thread.activate(run_id)
        local parent = redis.call('HGET', turns, 'p:' .. run_id) or redis.call('HGET', record, 'head') or ''
        local seq = redis.call('HINCRBY', record, 'next_seq', 1)
        redis.call('HSET', turns, 'p:' .. run_id, parent, 'n:' .. run_id, seq, 't:' .. run_id, now)
        redis.call('HDEL', turns, 'w:' .. run_id)
        redis.call('HSET', record, 'active', run_id, 'head', run_id)
        redis.call('ZADD', order, seq, run_id)
        thread.announce('active ' .. run_id)
    end

    -- Makes the first waiting run active and due. Its place among the runs of all tenants is that of a new one.
    function thread.activate_next()
        local run_id = redis.call('LPOP', line)
        if not run_id then
            thread.announce('idle')
            return
        end
        thread.activate(run_id)
        redis.call('ZADD', queue, next_virtual_time(vtime_key, tenant_vtime_key, args.life_ms), run_id)
        redis.call('RPUSH', wakeup, run_id)
        redis.call('LTRIM', wakeup, -args.wakeups_max, -1)
        return run_id
    end

    -- Closes the active run's turn and makes the next run active.
    -- turn: status, code of an error, last_id; out, its messages, JSON, or nil; is_off_branch: the branch goes on from
    -- the turn's parent.
    function thread.close(run_id, turn)
        redis.call('HSET', turns, 's:' .. run_id, turn.status, 'e:' .. run_id, turn.last_id)
        if (turn.code or '') ~= '' then
            redis.call('HSET', turns, 'c:' .. run_id, turn.code)
        end
        if turn.out then
            thread.add_messages(run_id, messages_out, turn.out)
        end
        if turn.is_off_branch then
            redis.call('HSET', record, 'head', redis.call('HGET', turns, 'p:' .. run_id) or '')
        end
        redis.call('HSET', record, 'active', '')
        return thread.activate_next()
    end

    -- Adds messages of a run, JSON, to messages_in or messages_out, and their bytes to the thread's sum.
    function thread.add_messages(run_id, hash, messages)
        redis.call('HSET', hash, run_id, messages)
        redis.call('HINCRBY', turns, 'b:' .. run_id, #messages)
        redis.call('HINCRBY', record, 'bytes', #messages)
    end

    -- Removes a run's messages from the thread, and their bytes from its sum.
    function thread.remove_messages(run_id)
        local size = tonumber(redis.call('HGET', turns, 'b:' .. run_id) or '0')
        redis.call('HDEL', messages_in, run_id)
        redis.call('HDEL', messages_out, run_id)
        redis.call('HSET', turns, 'b:' .. run_id, 0)
        redis.call('HINCRBY', record, 'bytes', -size)
    end

    -- Removes a waiting run, which never becomes a turn. The field `w:` says why, and lets the thread's deletion find it.
    function thread.leave(run_id, reason)
        if redis.call('LREM', line, 0, run_id) == 0 then
            return false
        end
        thread.remove_messages(run_id)
        redis.call('HDEL', turns, 'p:' .. run_id, 'b:' .. run_id)
        redis.call('HSET', turns, 'w:' .. run_id, reason)
        redis.call('HINCRBY', record, 'count', -1)
        thread.announce('left ' .. run_id)
        return true
    end

    -- Ends a run's part in the thread: closes its turn if it is active, else it stops waiting.
    function thread.end_run(run_id, turn)
        if not thread.exists() then
            return
        end
        local had_part = true
        if redis.call('HGET', record, 'active') == run_id then
            thread.close(run_id, turn)
        else
            had_part = thread.leave(run_id, 'left')
        end
        thread.touch(had_part)
    end

    function thread.make_due(run_id)
        redis.call('ZADD', queue, 'XX', now, run_id)
    end

    -- Removes a run that ended while it waited from the queue.
    function thread.dequeue(run_id)
        redis.call('ZREM', queue, run_id)
    end

    function thread.forget_busy()
        redis.call('SREM', busy, record)
    end

    -- Deletes all of the thread.
    function thread.forget()
        redis.call('DEL', record, turns, messages_in, messages_out, line, order)
        redis.call('ZREM', threads, record)
        thread.forget_busy()
        thread.announce('deleted')
    end

    -- Empties a deleted run's turn. Its place in the tree stays, for its children and for cursors.
    function thread.forget_run(run_id)
        if not thread.exists() then
            return
        end
        if redis.call('HEXISTS', turns, 'n:' .. run_id) == 1 then
            thread.remove_messages(run_id)
            redis.call('HSET', turns, 'd:' .. run_id, 1)
        end
        thread.end_run(run_id, {status = 'deleted', last_id = ''})
        thread.announce('gone ' .. run_id)
    end

    return thread
end
