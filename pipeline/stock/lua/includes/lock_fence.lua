-- The fence of a lock, inline at the top of a script: refuses a writer whose token is not the lock's newest. The last
-- argument is the writer's token, '' for a writer without a lock, such as a decider. With a token, the last key is that
-- of the newest token. Both are removed, so that the script below sees only its own keys and arguments.
local lock_token = table.remove(ARGV)
if lock_token ~= '' and redis.call('GET', table.remove(KEYS)) ~= lock_token then return { -1 } end
