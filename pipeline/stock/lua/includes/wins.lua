-- A user's wins: their value in the buyers hash, one line per win. Each is "offset:index", then ":quantity" unless it
-- is 1 and there is no key, then ":key". A key is visible ASCII and comes last, so it may contain colons.
local function win_encode(offset, index, quantity, key)
  if key then return offset .. ':' .. index .. ':' .. quantity .. ':' .. key end
  if quantity ~= 1 then return offset .. ':' .. index .. ':' .. quantity end
  return offset .. ':' .. index
end

-- wins_sum(wins, partition) -> units, number of wins, order id of the first
local function wins_sum(wins, partition)
  local units, count, first = 0, 0, nil
  for line in string.gmatch(wins, '[^\n]+') do
    local offset, index, rest = string.match(line, '^(%d+):(%d+):?(.*)$')
    units = units + (tonumber(string.match(rest, '^%d+')) or 1)
    count = count + 1
    first = first or partition .. '-' .. offset .. '-' .. index
  end
  return units, count, first
end

-- win_by_key(wins, key, partition) -> order id of the first win under this idempotency key, or nil
local function win_by_key(wins, key, partition)
  for line in string.gmatch(wins, '[^\n]+') do
    local offset, index, used = string.match(line, '^(%d+):(%d+):%d+:(.*)$')
    if used == key then return partition .. '-' .. offset .. '-' .. index end
  end
  return nil
end

-- wins_write(buyers_key, order, wins): stores wins[user] for each user in `order`; at most 2,000, which fits
-- unpack's stack
local function wins_write(buyers_key, order, wins)
  if #order == 0 then return end
  local fields = {}
  for i = 1, #order do
    fields[2 * i - 1] = order[i]
    fields[2 * i] = wins[order[i]]
  end
  redis.call('HSET', buyers_key, unpack(fields))
end
