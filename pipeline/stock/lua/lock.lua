-- lock: takes a lock, and gives its holder a token that is higher than that of every holder before.
--
-- Guarantees: all or nothing; no clock. If Redis has lost the last token, the caller's time keeps the token growing. If
-- Redis has an older token that is ahead of that time, the random step makes the token differ from the lost one.
--
-- KEYS  1 the lock   2 its newest token
-- ARGV  1 what the lock contains while it is held: who holds it   2 for how long, in ms   3 the time, in µs since 1970
--       4 the step from the last token: a random number, at least 1
-- Reply {1, token}   taken
--       {0, content}  another holds it
-- Errors: none of its own.
local held = redis.call('GET', KEYS[1])
if held then return { 0, held } end
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local token = string.format('%.0f', math.max(last + tonumber(ARGV[4]), tonumber(ARGV[3])))
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { 1, token }
