-- decide: decides a chunk of commands of one partition, all or nothing, exactly once.
--
-- Guarantees: fenced (nothing is written unless the cursor is where the caller expects it); computes first, writes
-- last; no clock (each record carries its time, clamped here so that it never runs backwards); at most 2,000 purchases.
--
-- KEYS  1 cursor   2 set of products   3 hash of the products that are cleaned up
--       then for product 1..P: its hash, its buyers
-- ARGV  1 after_offset: where the caller expects the cursor
--       2 results_position: the last known end of the decision log; all decisions up to after_offset lie before it
--       3 partition   4 P   then P product ids
--       then for each record: offset, time_ms, product 1..P (0: malformed), the command byte for byte (malformed: the
--       members of its decision, pipeline/messages/decisions.py:malformed_members)
-- Reply {1, {decision records}}
--       {0, cursor}  STALE: the cursor is elsewhere; nothing was written
-- Errors: none of its own. The commands have passed pipeline/messages/commands.py:decode_command, the only validation.
-- include: codes
-- include: limits
-- include: limiter
-- include: index_text
-- include: wins
-- include: product
-- include: command_keys
-- include: controls
-- include: fence

local partition, product_count = ARGV[3], tonumber(ARGV[4])

local products = {}
for i = 1, product_count do
  products[i] = product_load(ARGV[4 + i], KEYS[2 + 2 * i], KEYS[3 + 2 * i], KEYS[3])
end

local function off_sale_code(product)
  if product.state == 'closed' or product.state == 'cleaned_up' then return CODE.ENDED end
  if product.state ~= 'active' then return CODE.NOT_ACTIVE end
  if time_ms < product.start_ms then return CODE.NOT_STARTED end
  if time_ms >= product.end_ms then return CODE.ENDED end
  return nil
end

local function head(offset, kind)
  return '{"source_offset":' .. offset .. ',"type":"' .. kind .. '","time_ms":' .. string.format('%.0f', time_ms)
end

-- Cached strings: concatenating a number costs a sprintf, and there are hundreds of thousands a second.
local TEXT = {}
for _, code in pairs(CODE) do TEXT[code] = tostring(code) end

-- decide_one(...) -> code, order id of the earlier win that it refers to, whether the limiter let it through
local function decide_one(product, off_sale, limited, wins, quantity, key)
  if quantity < 1 or quantity > QUANTITY_MAX then return CODE.INVALID_QUANTITY, nil, false end
  if key and wins then
    local order_id = win_by_key(wins, key, partition)
    if order_id then return CODE.SUCCESS, order_id, false end
  end
  if off_sale then return off_sale, nil, false end
  if limited then return CODE.BUSY, nil, false end
  local units, count, first = 0, 0, nil
  if wins then units, count, first = wins_sum(wins, partition) end
  if units + quantity > product.per_user_limit or count >= WINS_PER_USER_MAX then
    return CODE.ALREADY_BOUGHT, first, true
  end
  if product.stock < quantity then return CODE.INSUFFICIENT_STOCK, nil, true end
  return CODE.SUCCESS, nil, true
end

-- decide_columns(...) -> codes and held as JSON parts, how many the limiter let through
local function decide_columns(product, offset, command, off_sale, allowed)
  local users, quantities, keys = command.users, command.quantities, command.keys
  local bought = {}
  -- After a cleanup in this chunk, the buyers are still in Redis.
  if (keys or not off_sale) and product.state ~= 'cleaned_up' then bought = redis.call('HMGET', product.buyers_key, unpack(users)) end
  local codes, held, passed = {}, {}, 0
  local fresh, order, counts, prefix = product.fresh, product.order, product.counts, offset .. ':'
  -- The fast path: nearly all purchases are one unit, without a key, by a user without wins.
  local plain = not off_sale and not quantities and not keys
  for i = 1, #users do
    local user = users[i]
    local wins = fresh[user] or bought[i]
    local code, order_id, let_through
    if plain and not wins and passed < allowed then
      let_through = true
      if product.stock < 1 then code = CODE.INSUFFICIENT_STOCK else code = CODE.SUCCESS end
    else
      local quantity = quantities and quantities[i] or 1
      code, order_id, let_through =
        decide_one(product, off_sale, passed >= allowed, wins, quantity, keys and keys[index_text(i)])
    end
    if let_through then passed = passed + 1 end
    if order_id then
      held[#held + 1] = '"' .. index_text(i) .. '":"' .. order_id .. '"'
    elseif code == CODE.SUCCESS then
      local quantity = quantities and quantities[i] or 1
      if not fresh[user] then order[#order + 1] = user end
      local win = prefix .. index_text(i)
      if not plain then win = win_encode(offset, index_text(i), quantity, keys and keys[index_text(i)]) end
      if wins then win = wins .. '\n' .. win end
      fresh[user] = win
      product.stock, product.sold = product.stock - quantity, product.sold + quantity
    end
    codes[i] = TEXT[code]
    counts[code] = (counts[code] or 0) + 1
  end
  return codes, held, passed
end

local function decide_purchases(product, offset, command, value)
  local codes, held = {}, {}
  local rule, level, before, moment
  if product.opened then
    local off_sale, allowed, passed = off_sale_code(product), #command.users, nil
    if not off_sale then rule = product.rule end
    if rule then allowed, level, before, moment = limiter_admissible(rule, product.limiter, time_ms) end
    codes, held, passed = decide_columns(product, offset, command, off_sale, allowed)
    if rule then level = level + passed * (rule.algorithm == 'token_bucket' and 1000 or 1) end
  else
    for i = 1, #command.users do codes[i] = TEXT[CODE.NEVER_OPENED] end
  end
  local parts = { head(offset, 'purchase'), ',"codes":[', table.concat(codes, ','), ']' }
  if #held > 0 then parts[#parts + 1] = ',"held":{' .. table.concat(held, ',') .. '}' end
  if product.opened and product.state ~= 'cleaned_up' then
    parts[#parts + 1] = ',"stock":' .. product.stock .. ',"sold":' .. product.sold
      .. ',"price":"' .. product.price .. '"'
  end
  if rule then
    product.limiter = string.format('%.0f:%.0f:%.0f', level, before, moment)
    parts[#parts + 1] = ',"limiter":"' .. product.limiter .. '"'
    if string.find(parts[3], TEXT[CODE.BUSY], 1, true) then
      parts[#parts + 1] = ',"retry_after_ms":' .. limiter_retry_after_ms(rule, level, before, time_ms)
    end
  end
  parts[#parts + 1] = ',"command":' .. value .. '}'
  purchases = purchases + #command.users
  return table.concat(parts)
end

local OPEN_REFUSAL = { closed = 'closed', cleaned_up = 'cleaned_up' }

-- decide_change(product, offset, command, value): opens the product, or applies a control
local function decide_change(product, offset, command, value)
  local outcome = ''
  local is_opening = command.type == 'open'
  local repeated = command_repeated(product, command.key)
  local refusal
  if repeated then
    outcome = ',"repeats":' .. repeated
  elseif is_opening then
    if product.opened then refusal = OPEN_REFUSAL[product.state] or 'already_open' end
  else
    refusal = not product.opened and 'never_opened' or control_refusal(product, command)
  end
  if refusal then
    outcome = ',"refusal":"' .. refusal .. '"'
  elseif not repeated then
    if is_opening then
      product_open(product, command)
      command_remember(product, command.key, offset)
    else
      control_apply(product, command, offset)
    end
    if command.type == 'adjust' then
      outcome = ',"stock":' .. product.stock .. ',"sold":' .. product.sold
    end
  end
  return head(offset, command.type) .. outcome .. ',"command":' .. value .. '}'
end

-- The last answer prefixes each decision with its length, because a command may contain any bytes.
local decisions, lengthened, last_offset = {}, {}, ARGV[1]
for i = 5 + product_count, #ARGV, 4 do
  local offset, value = ARGV[i], ARGV[i + 3]
  local product = products[tonumber(ARGV[i + 2])]
  time_ms = math.max(time_ms, tonumber(ARGV[i + 1]))
  local decision
  if not product then
    decision = head(offset, 'malformed') .. ',' .. value .. '}'
  else
    local command = cjson.decode(value)
    if command.type == 'purchase' then
      decision = decide_purchases(product, offset, command, value)
    else
      decision = decide_change(product, offset, command, value)
    end
  end
  decisions[#decisions + 1] = decision
  lengthened[#lengthened + 1] = #decision .. ':' .. decision
  last_offset = offset
end

products_write(products, KEYS[2], KEYS[3])
redis.call('HSET', KEYS[1],
  'offset', last_offset, 'time_ms', time_ms, 'purchases', purchases, 'records', records + #decisions,
  'settled', ARGV[1], 'results_position', ARGV[2], 'last_answer', table.concat(lengthened))
return { 1, decisions }
