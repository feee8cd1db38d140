-- replay: does recorded decisions of one partition again on a Redis that has lost them.
--
-- Guarantees: fenced like decide; what it leaves is what deciding left, to the last field (last_answer apart, which is
-- empty: all of it is in the decision log).
--
-- KEYS  1 cursor   2 set of products   then for product 1..P: its hash, its buyers
-- ARGV  1 after_offset: where the caller believes the cursor to be
--       2 results_position: the position in the decision log after the last of these records
--       3 P   then P product ids
--       then for each decision record: its product 1..P (0: malformed), the record
-- Reply {1}   done
--       {0, cursor}  STALE: the cursor is elsewhere; nothing was written
-- Errors: none of its own; a record that no decider wrote fails in cjson, before anything is written.
-- include: wins
-- include: product

local cursor = redis.call('HMGET', KEYS[1], 'offset', 'time_ms', 'purchases', 'records')
local at = cursor[1] or '-1'
if at ~= ARGV[1] then return { 0, at } end
local time_ms = tonumber(cursor[2] or '0')
local purchases, records = tonumber(cursor[3] or '0'), tonumber(cursor[4] or '0')
local product_count = tonumber(ARGV[3])

local products = {}
for i = 1, product_count do products[i] = product_load(ARGV[3 + i], KEYS[1 + 2 * i], KEYS[2 + 2 * i]) end

local function replay_purchases(product, decision, offset)
  local users, quantities, keys = decision.command.users, decision.command.quantities, decision.command.keys
  local codes, held, counts = decision.codes, decision.held or {}, product.counts
  purchases = purchases + #users
  if not product.opened then return end
  local bought = redis.call('HMGET', product.buyers_key, unpack(users))
  local fresh = product.fresh
  for i = 1, #users do
    local code = codes[i]
    counts[code] = (counts[code] or 0) + 1
    if code == 1 and not held[tostring(i - 1)] then
      local user = users[i]
      local wins = fresh[user] or bought[i]
      if not fresh[user] then product.order[#product.order + 1] = user end
      local win = win_encode(offset, i - 1, quantities and quantities[i] or 1, keys and keys[tostring(i - 1)])
      fresh[user] = wins and wins .. '\n' .. win or win
    end
  end
  product.stock, product.sold = decision.stock, decision.sold
  if decision.limiter then product.limiter = decision.limiter end
end

local last_offset = ARGV[1]
for i = 4 + product_count, #ARGV, 2 do
  local product, value = products[tonumber(ARGV[i])], ARGV[i + 1]
  local offset = string.match(value, '^{"source_offset":(%d+),')
  local decision = cjson.decode(value)
  time_ms = decision.time_ms
  if decision.type == 'purchase' then
    replay_purchases(product, decision, offset)
  elseif decision.type == 'open' and not decision.refusal then
    product_open(product, decision.command)
  elseif decision.type == 'close' and not decision.refusal then
    product.state = 'closed'
  end
  records = records + 1
  last_offset = offset
end

for i = 1, product_count do product_write(products[i], KEYS[2]) end
redis.call('HSET', KEYS[1],
  'offset', last_offset, 'time_ms', time_ms, 'purchases', purchases, 'records', records,
  'settled', last_offset, 'results_position', ARGV[2])
redis.call('HDEL', KEYS[1], 'last_answer')
return { 1 }
