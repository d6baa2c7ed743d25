-- due: jobs that may be taken now: new ones, due retries, and those whose lease has run out.
--
-- KEYS[1] queue  zset  keys.QUEUE
-- ARGV[1] limit  int   how many at the most
-- Returns {ms until the next one is due, or -1, job id, ...}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local answer = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
local following = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
table.insert(answer, 1, following[2] and string.format('%d', tonumber(following[2]) - now_ms) or '-1')
return answer
