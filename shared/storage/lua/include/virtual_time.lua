-- next_virtual_time: return the virtual time of a tenant's next run, and count it.
--
-- Its text precedes that of each script that uses it. This is start-time fair queueing with cost 1: one after the
-- tenant's last run, but not before the time of the run that was acquired last. So tenants alternate, and a tenant with
-- one run waits for at most one run of each other tenant, however many those have.
local function next_virtual_time(vtime_key, tenant_vtime_key, life_ms)
    local acquired_vtime = tonumber(redis.call('GET', vtime_key) or '0')
    local vtime = math.max(acquired_vtime, tonumber(redis.call('GET', tenant_vtime_key) or '1'))
    redis.call('SET', vtime_key, string.format('%d', acquired_vtime), 'PX', life_ms)
    redis.call('SET', tenant_vtime_key, string.format('%d', vtime + 1), 'PX', life_ms)
    return string.format('%d', vtime)
end
