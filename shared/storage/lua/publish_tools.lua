-- publish_tools: refresh a worker's tools and remove those that no worker has published for a while.
--
-- KEYS[1] tools     hash    keys.TOOLS
-- KEYS[2] seen      zset    keys.TOOLS_SEEN
-- ARGV[1] ttl_ms    int     a tool is removed after this time without a refresh
-- ARGV[2..]         name and description of each tool; the description is '' if it was published before
-- Returns the names that came without a description and have none here.
--
-- No worker withdraws a tool: another worker may still have it, and a killed worker could not. Safe to repeat.
local tools, seen = KEYS[1], KEYS[2]
local ttl_ms, published = ARGV[1], {unpack(ARGV, 2)}

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local missing = {}
for i = 1, #published, 2 do
    local name, description = published[i], published[i + 1]
    if description ~= '' then
        redis.call('HSET', tools, name, description)
    end
    if redis.call('HEXISTS', tools, name) == 1 then
        redis.call('ZADD', seen, string.format('%d', now), name)
    else
        missing[#missing + 1] = name
    end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', seen, '-inf', string.format('(%d', now - ttl_ms))) do
    redis.call('HDEL', tools, name)
    redis.call('ZREM', seen, name)
end
return missing
