-- list_due: jobs that may be taken now: those whose lease has run out, due retries, and new ones by their turn.
--
-- KEYS[1] queue  zset  keys.QUEUE
-- ARGV[1] limit  int   how many at the most
-- ARGV[2] times  int   scores from here on are times, those below are turns
-- Returns {ms until the next one is due, or -1, job id, ...}.
--
-- What has begun comes first: its client has seen a part of it, and there is never more
-- of it than workers had room for.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[2], now, 'LIMIT', 0, ARGV[1])
if #answer < tonumber(ARGV[1]) then
    local new = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[1] - #answer)
    for _, run_id in ipairs(new) do
        table.insert(answer, run_id)
    end
end
local following = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
table.insert(answer, 1, following[2] and string.format('%d', tonumber(following[2]) - now_ms) or '-1')
return answer
