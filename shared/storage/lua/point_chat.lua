-- point_chat: let a chat stand for its newest run.
--
-- KEYS[1] chat    string  keys.chat
-- ARGV[1] run_id  str
-- ARGV[2] life_s  int     the TTL
-- Returns the id of the run that the chat stands for.
--
-- Ids of runs sort by creation time. A repeated request for an older run changes nothing.
local chat = KEYS[1]
local run_id, life_s = ARGV[1], ARGV[2]

local newest = redis.call('GET', chat)
if newest and newest > run_id then
    return newest
end
redis.call('SET', chat, run_id, 'EX', life_s)
return run_id
