-- viewed: moves the mark up to which the polling view of one partition was written, unless Redis has lost the view.
--
-- Guarantees: the mark never goes back, and never passes over results that are no longer in the view. A view that was
-- lost (FLUSHALL, an older snapshot) has a mark below the one that the writer left.
--
-- KEYS  1 mark
-- ARGV  1 written: the source offset where the writer left the mark, -1 for never
--       2 source_offset   3 results_position: where the mark shall stand
-- Reply 1  the mark stands at source_offset or above
--       0  the view was lost; the mark was not moved
-- Errors: none of its own.
local at = tonumber(string.match(redis.call('GET', KEYS[1]) or '-1', '^-?%d+'))
if at < tonumber(ARGV[1]) then return 0 end
if at < tonumber(ARGV[2]) then redis.call('SET', KEYS[1], ARGV[2] .. ':' .. ARGV[3]) end
return 1
