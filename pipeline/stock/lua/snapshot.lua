-- snapshot: the state that decides a product's next purchase, and the wins of some of its buyers, at one moment.
--
-- Guarantees: one atomic read, so all that it returns belongs to the returned cursor and log; writes nothing.
--
-- KEYS  1 cursor   2 the product's hash   3 the product's buyers   4 the log that the partition belongs to
--       5 hash of the products that are cleaned up
-- ARGV  1 product id   then user ids, at most 1,000
-- Reply {log, offset, time_ms}             for a product that was never opened; log and cursor are false if missing
--       {log, offset, time_ms, 'cleaned_up'}
--       {log, offset, time_ms, {stock, state, start_ms, end_ms, per_user_limit}, {each user's wins, false for none}}
-- Errors: none of its own.
local log = redis.call('GET', KEYS[4])
local cursor = redis.call('HMGET', KEYS[1], 'offset', 'time_ms')
local product = redis.call('HMGET', KEYS[2], 'stock', 'state', 'start_ms', 'end_ms', 'per_user_limit')
if product[1] then
  return { log, cursor[1], cursor[2], product, redis.call('HMGET', KEYS[3], unpack(ARGV, 2)) }
end
if redis.call('HEXISTS', KEYS[5], ARGV[1]) == 1 then return { log, cursor[1], cursor[2], 'cleaned_up' } end
return { log, cursor[1], cursor[2] }
