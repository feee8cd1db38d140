-- take_over: records which log a partition belongs to from now on.
--
-- KEYS  1 the log that the partition belongs to   then, with a token, the lock's newest token
-- ARGV  1 the log's identity, '' for none   2 the lock's token (includes/lock_fence.lua)
-- Reply {1}   done
--       {-1}  another holds the lock; nothing was written
-- Errors: none of its own.
-- include: lock_fence
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1]) end
return { 1 }
