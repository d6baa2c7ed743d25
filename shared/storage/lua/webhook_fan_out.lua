-- webhook_fan_out: make deliveries from entries of the outbox, and remove the entries.
--
-- KEYS[1] outbox     stream  keys.outbox
-- KEYS[2] endpoints  hash    keys.WEBHOOK_ENDPOINTS
-- KEYS[3..]                  for each delivery: keys.webhook_delivery, keys.webhook_open and keys.webhook_due of its endpoint
-- ARGV[1] entries    json    ids of the entries
-- ARGV[2..] for each delivery: the number of its entry from 1 on (0: none), its id, its endpoint, its fields as JSON
-- Returns the number of new deliveries.
--
-- Safe to repeat, and with any number of workers at once: only the call that removes an entry makes its deliveries, in
-- the same step, and one that exists stays as it is. There may be more arguments than Lua can unpack.
local outbox, endpoints, all_keys = KEYS[1], KEYS[2], KEYS
local entries, all_args = ARGV[1], ARGV

local is_mine = {[0] = true}
for number, entry_id in ipairs(cjson.decode(entries)) do
    is_mine[number] = redis.call('XDEL', outbox, entry_id) == 1
end
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local made = 0
for i = 0, (#all_args - 1) / 4 - 1 do
    local at, key_at = 1 + 4 * i, 2 + 3 * i
    local number, id, endpoint, content = tonumber(all_args[at + 1]), all_args[at + 2], all_args[at + 3], all_args[at + 4]
    local delivery, open, due = all_keys[key_at + 1], all_keys[key_at + 2], all_keys[key_at + 3]
    if is_mine[number] and redis.call('EXISTS', delivery) == 0 then
        for name, value in pairs(cjson.decode(content)) do
            redis.call('HSET', delivery, name, value)
        end
        redis.call('HSET', delivery, 'endpoint', endpoint, 'state', 'waiting', 'created_at', now, 'since', now)
        redis.call('ZADD', open, now, id)
        redis.call('ZADD', due, now, id)
        redis.call('HINCRBY', endpoints, endpoint, 1)
        made = made + 1
    end
end
return made
