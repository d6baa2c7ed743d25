-- publish_tools: say which tools a worker has, and forget those that no worker said it has for a while.
--
-- KEYS[1] tools     hash    keys.TOOLS
-- KEYS[2] seen      zset    keys.TOOLS_SEEN
-- ARGV[1] ttl_ms    int     a tool is forgotten after this long
-- ARGV[2..]         a name and its description, in turns; '' for one that was published before
-- Returns the names of those that came without a description and have none here.
--
-- Nobody withdraws a tool: another worker may still have it, and a worker that is killed
-- could not. Safe to repeat.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local missing = {}
for i = 2, #ARGV, 2 do
    if ARGV[i + 1] ~= '' then
        redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    end
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
        redis.call('ZADD', KEYS[2], string.format('%d', now), ARGV[i])
    else
        missing[#missing + 1] = ARGV[i]
    end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('(%d', now - ARGV[1]))) do
    redis.call('HDEL', KEYS[1], name)
    redis.call('ZREM', KEYS[2], name)
end
return missing
