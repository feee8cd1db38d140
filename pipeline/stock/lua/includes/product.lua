-- A product while a script runs: loaded once, changed in memory, written at the end. Needs `wins`.
local PRODUCT_FIELDS = {
  'stock', 'sold', 'per_user_limit', 'start_ms', 'end_ms', 'state', 'price', 'limiter', 'rate_limit', 'adjusted',
  'command_keys',
}

local function product_rule(text)
  if not text or text == '' then return nil end
  local algorithm, requests_per_second, burst = string.match(text, '^([a-z_]+):(%d+):(%d+)$')
  return {
    algorithm = algorithm,
    requests_per_second = tonumber(requests_per_second),
    burst = tonumber(burst),
  }
end

-- product_load(id, product_key, buyers_key, cleaned_key) -> product; product.opened is false if it was never opened
-- A product that is cleaned up is only a field of the hash at cleaned_key, whose value is like `command_keys`.
local function product_load(id, product_key, buyers_key, cleaned_key)
  local product = { id = id, key = product_key, buyers_key = buyers_key, counts = {}, fresh = {}, order = {} }
  local values = redis.call('HMGET', product_key, unpack(PRODUCT_FIELDS))
  product.opened = values[1] ~= false
  if product.opened then
    product.stock, product.sold = tonumber(values[1]), tonumber(values[2])
    product.per_user_limit = tonumber(values[3])
    product.start_ms, product.end_ms = tonumber(values[4]), tonumber(values[5])
    product.state, product.price = values[6], values[7]
    product.limiter, product.rule = values[8], product_rule(values[9])
    product.adjusted, product.command_keys = values[10] and tonumber(values[10]), values[11]
  else
    local command_keys = redis.call('HGET', cleaned_key, id)
    if command_keys then
      product.opened, product.state = true, 'cleaned_up'
      product.command_keys = command_keys ~= '' and command_keys
    end
  end
  return product
end

-- product_limit_rate(product, limit): a new rate limit, 'none' for none, which starts unused
local function product_limit_rate(product, limit)
  product.rule, product.rate_limit, product.limiter = nil, '', '0:0:0'
  if limit ~= 'none' then
    product.rule = limit
    product.rate_limit = limit.algorithm .. ':' .. limit.requests_per_second .. ':' .. limit.burst
  end
end

-- product_open(product, command): applies a decoded open command
local function product_open(product, command)
  product.opened, product.is_new, product.has_new_terms = true, true, true
  product.stock, product.sold, product.initial = command.stock + 0, 0, command.stock + 0
  product.per_user_limit = command.per_user_limit
  -- In JSON, -0 is a number: adding 0 makes it 0.
  product.start_ms, product.end_ms = command.start_ms + 0, command.end_ms + 0
  product.state, product.price, product.name = command.state, command.price, command.name
  product_limit_rate(product, command.rate_limit or 'none')
end

-- product_clean_up(product): forgets everything but that it is closed
local function product_clean_up(product)
  product.state, product.is_newly_cleaned, product.command_keys = 'cleaned_up', true, nil
  product.rule, product.counts, product.fresh, product.order = nil, {}, {}, {}
end

local function product_write_cleanup(product, products_key, cleaned_key)
  redis.call('SREM', products_key, product.id)
  redis.call('UNLINK', product.key, product.buyers_key)
  redis.call('HSET', cleaned_key, product.id, product.command_keys or '')
end

local function product_write(product, products_key)
  if product.is_new then
    redis.call('SADD', products_key, product.id)
    redis.call('HSET', product.key, 'initial', product.initial, 'price', product.price, 'name', product.name)
  end
  if product.has_new_terms then
    redis.call('HSET', product.key,
      'per_user_limit', product.per_user_limit, 'start_ms', product.start_ms, 'end_ms', product.end_ms)
    if product.rate_limit then redis.call('HSET', product.key, 'rate_limit', product.rate_limit) end
  end
  if product.is_newly_adjusted then redis.call('HSET', product.key, 'adjusted', product.adjusted) end
  if product.has_new_keys then redis.call('HSET', product.key, 'command_keys', product.command_keys) end
  redis.call('HSET', product.key,
    'stock', product.stock, 'sold', product.sold, 'state', product.state, 'limiter', product.limiter)
  for code, count in pairs(product.counts) do redis.call('HINCRBY', product.key, 'code:' .. code, count) end
  wins_write(product.buyers_key, product.order, product.fresh)
end

-- products_write(products, products_key, cleaned_key): writes all that changed
-- Cleanups first: a user of Redis who may not use SREM fails here, before anything is written.
local function products_write(products, products_key, cleaned_key)
  for _, product in ipairs(products) do
    if product.is_newly_cleaned then product_write_cleanup(product, products_key, cleaned_key) end
  end
  for _, product in ipairs(products) do
    if product.opened and product.state ~= 'cleaned_up' then product_write(product, products_key) end
  end
end
