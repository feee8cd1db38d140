-- wipe: deletes all decided state of one partition, so that it can be rebuilt from the decision log.
--
-- KEYS  1 cursor   2 set of products   then the partition's other keys that the caller found   then, with a token, the
--       lock's newest token
-- ARGV  1 after_offset: where the caller expects the cursor
--       2 prefix of the product hashes   3 prefix of the buyers hashes   4 a lock's token (includes/lock_fence.lua)
-- Reply {1}   done
--       {0, cursor}  STALE: the cursor is elsewhere; nothing was deleted
--       {-1}  another holds the lock; nothing was deleted
-- Errors: none of its own.
-- include: lock_fence
local at = redis.call('HGET', KEYS[1], 'offset') or '-1'
if at ~= ARGV[1] then return { 0, at } end
-- Products that were added after the caller's scan. Their keys share the cursor's hash tag.
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  redis.call('UNLINK', ARGV[2] .. id, ARGV[3] .. id)
end
for _, key in ipairs(KEYS) do redis.call('UNLINK', key) end
return { 1 }
