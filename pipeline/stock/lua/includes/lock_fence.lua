-- The fence of a lock, inline at the top of a script: refuses a writer whose token is no longer the lock's newest. The
-- last argument is the token; '' is a writer without a lock, such as a decider. With a token, the last key is that of
-- the newest one. Both are removed, so the script below sees only its own.
local lock_token = table.remove(ARGV)
if lock_token ~= '' and redis.call('GET', table.remove(KEYS)) ~= lock_token then return { -1 } end
