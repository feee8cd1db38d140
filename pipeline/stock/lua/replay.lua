-- replay: applies recorded decisions of one partition to a Redis that lacks them.
--
-- Guarantees: fenced like decide; leaves the same state as deciding, field for field, except for last_answer, which is
-- deleted: those decisions are in the decision log.
--
-- KEYS  1 cursor   2 set of products   3 hash of the products that are cleaned up
--       then for product 1..P: its hash, its buyers   then, with a token, the lock's newest token
-- ARGV  1 after_offset: where the caller expects the cursor
--       2 results_position: the position in the decision log after the last of these records
--       3 P   then P product ids
--       then for each decision record: its product 1..P (0: malformed), the record
--       then a lock's token (includes/lock_fence.lua)
-- Reply {1}   done
--       {0, cursor}  STALE: the cursor is elsewhere; nothing was written
--       {-1}  another holds the lock; nothing was written
-- Errors: none of its own; a record that no decider wrote fails in cjson before anything is written.
-- include: lock_fence
-- include: limits
-- include: index_text
-- include: wins
-- include: product
-- include: command_keys
-- include: controls
-- include: fence

local product_count = tonumber(ARGV[3])

local products = {}
for i = 1, product_count do
  products[i] = product_load(ARGV[3 + i], KEYS[2 + 2 * i], KEYS[3 + 2 * i], KEYS[3])
end

-- replay_wins(...): `won` is the list of indexes of the purchases that took stock
local function replay_wins(product, command, offset, won)
  local users, quantities, keys = command.users, command.quantities, command.keys
  local names = {}
  for n = 1, #won do names[n] = users[won[n]] end
  local bought = redis.call('HMGET', product.buyers_key, unpack(names))
  local fresh, order = product.fresh, product.order
  for n = 1, #won do
    local i, user = won[n], names[n]
    local wins = fresh[user] or bought[n]
    if not fresh[user] then order[#order + 1] = user end
    local win = win_encode(offset, index_text(i), quantities and quantities[i] or 1, keys and keys[index_text(i)])
    fresh[user] = wins and wins .. '\n' .. win or win
  end
end

local function replay_purchases(product, decision, offset)
  local codes, held, counts = decision.codes, decision.held, product.counts
  purchases = purchases + #codes
  if not product.opened or product.state == 'cleaned_up' then return end
  local won = {}
  for i = 1, #codes do
    local code = codes[i]
    counts[code] = (counts[code] or 0) + 1
    if code == 1 and not (held and held[index_text(i)]) then won[#won + 1] = i end
  end
  if #won > 0 then replay_wins(product, decision.command, offset, won) end
  if decision.stock then product.stock, product.sold = decision.stock, decision.sold end
  if decision.limiter then product.limiter = decision.limiter end
end

local function replay_change(product, decision, offset)
  local command = decision.command
  if decision.type == 'open' then
    product_open(product, command)
    command_remember(product, command.key, offset)
  elseif product.opened then
    control_apply(product, command, offset)
    if decision.stock then product.stock, product.sold = decision.stock, decision.sold end
  end
end

local last_offset = ARGV[1]
for i = 4 + product_count, #ARGV, 2 do
  local product, value = products[tonumber(ARGV[i])], ARGV[i + 1]
  local offset = string.match(value, '^{"source_offset":(%d+),')
  local decision = cjson.decode(value)
  time_ms = decision.time_ms
  if decision.type == 'purchase' then
    replay_purchases(product, decision, offset)
  elseif product and not decision.refusal and not decision.repeats then
    replay_change(product, decision, offset)
  end
  records = records + 1
  last_offset = offset
end

products_write(products, KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1],
  'offset', last_offset, 'time_ms', time_ms, 'purchases', purchases, 'records', records,
  'settled', last_offset, 'results_position', ARGV[2])
redis.call('HDEL', KEYS[1], 'last_answer')
return { 1 }
