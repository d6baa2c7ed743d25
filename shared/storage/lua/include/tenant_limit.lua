-- tenant_limit: return a tenant's own limit; the default if it has none, or if its value is not a plain number.
--
-- Its text precedes that of each script that uses it. A limit of 0 means none, so a value such as 'none', '-1', 'nan'
-- or '1,000' must not become 0; the sweep logs such values (shared/domain/limits.py, which has the same pattern).
-- A larger number would be no integer in a reply, and one of 400 digits is infinite.
local LIMIT_MAX = 1e15
local function tenant_limit(limits, tenant, name, default)
    local own = redis.call('HGET', limits, tenant .. ':' .. name)
    if own and string.find(own, '^%d*%.?%d+$') then
        return math.min(tonumber(own), LIMIT_MAX)
    end
    return tonumber(default) or 0
end
