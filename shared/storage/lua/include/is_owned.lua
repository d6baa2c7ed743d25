-- is_owned: return whether a run belongs to a tenant and, if a user is given, to this user of it.
--
-- Its text precedes that of each script that uses it. `stored` has the record's fields tenant and user. A run without a
-- user is no user's own. The rule is that of RunOwner (shared/domain/tenants.py).
local function is_owned(stored, tenant, user)
    return stored[1] == tenant and (not user or (user ~= '' and stored[2] == user))
end
