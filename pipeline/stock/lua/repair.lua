-- repair: gives one product, and some of its buyers, the values that the decision log adds up to at the cursor.
--
-- Guarantees: fenced like decide; never changes the cursor or another product; a repeated call changes nothing; none of
-- KEYS 1 to 6 expires afterwards.
--
-- KEYS  1 cursor   2 set of products   3 hash of the products that are cleaned up   4 the product's hash
--       5 its buyers   6 the log that the partition belongs to   then, with a token, the lock's newest token
-- ARGV  1 after_offset: where the caller expects the cursor
--       2 product id
--       3 opened, cleaned_up or never_opened; unless it is opened, its hash and its buyers are deleted
--       4 its value in the hash of the products that are cleaned up; ignored unless it is cleaned up
--       5 F   then F fields of the product's hash: name, value; all others are deleted
--       then for each of at most 1,000 buyers: user, value; '' for a user who has won nothing
--       then a lock's token (includes/lock_fence.lua)
-- Reply {1}   done
--       {0, cursor}  STALE: the cursor is elsewhere; nothing was written
--       {-1}  another holds the lock; nothing was written
-- Errors: WRONGTYPE if KEYS 2 or 3 has another type. The product's keys may have any type.
-- include: lock_fence
-- include: fence

local id, state, fields_end = ARGV[2], ARGV[3], 5 + 2 * tonumber(ARGV[5])
if state == 'opened' then redis.call('SADD', KEYS[2], id) else redis.call('SREM', KEYS[2], id) end
if state == 'cleaned_up' then redis.call('HSET', KEYS[3], id, ARGV[4]) else redis.call('HDEL', KEYS[3], id) end
redis.call('UNLINK', KEYS[4])
if state == 'opened' then
  redis.call('HSET', KEYS[4], unpack(ARGV, 6, fields_end))
  if redis.call('TYPE', KEYS[5]).ok ~= 'hash' then redis.call('UNLINK', KEYS[5]) end
else
  redis.call('UNLINK', KEYS[5])
end
for i = fields_end + 1, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[5], ARGV[i]) else redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 1]) end
end
for _, key in ipairs(KEYS) do redis.call('PERSIST', key) end
return { 1 }
