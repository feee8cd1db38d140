-- The fence, inline at the top of a script: returns STALE unless the cursor is where the caller expects it (ARGV 1);
-- then time_ms, purchases and records are what the partition adds up to.
local cursor = redis.call('HMGET', KEYS[1], 'offset', 'time_ms', 'purchases', 'records')
local at = cursor[1] or '-1'
if at ~= ARGV[1] then return { 0, at } end
-- Products without a cursor: the cursor was lost, so a caller that expects to be at the beginning must synchronise.
if not cursor[1] and redis.call('EXISTS', unpack(KEYS, 2)) > 0 then return { 0, at } end
local time_ms = tonumber(cursor[2] or '0')
local purchases, records = tonumber(cursor[3] or '0'), tonumber(cursor[4] or '0')
