-- look: what decides about the next purchase of a product, and what some of its buyers have won, at one moment.
--
-- Guarantees: one atomic look, so that what it tells all belongs to the cursor that it tells; it writes nothing.
--
-- KEYS  1 cursor   2 the product's hash   3 the product's buyers
-- ARGV  user ids, at most 1,000
-- Reply {offset, time_ms}                  the cursor (false where there is none), of a product that was never opened
--       {offset, time_ms, {stock, state, start_ms, end_ms, per_user_limit}, {each user's wins, false for none}}
-- Errors: none of its own.
local cursor = redis.call('HMGET', KEYS[1], 'offset', 'time_ms')
local product = redis.call('HMGET', KEYS[2], 'stock', 'state', 'start_ms', 'end_ms', 'per_user_limit')
if not product[1] then return cursor end
return { cursor[1], cursor[2], product, redis.call('HMGET', KEYS[3], unpack(ARGV)) }
