-- A product while a script runs: loaded once, changed in memory, written at the end.
local PRODUCT_FIELDS = {
  'stock', 'sold', 'per_user_limit', 'start_ms', 'end_ms', 'state', 'price', 'limiter', 'rate_limit',
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

-- product_load(id, product_key, buyers_key) -> product; product.opened is false if it does not exist
local function product_load(id, product_key, buyers_key)
  local product = { id = id, key = product_key, buyers_key = buyers_key, counts = {}, fresh = {}, order = {} }
  local values = redis.call('HMGET', product_key, unpack(PRODUCT_FIELDS))
  product.opened = values[1] ~= false
  if product.opened then
    product.stock, product.sold = tonumber(values[1]), tonumber(values[2])
    product.per_user_limit = tonumber(values[3])
    product.start_ms, product.end_ms = tonumber(values[4]), tonumber(values[5])
    product.state, product.price = values[6], values[7]
    product.limiter, product.rule = values[8], product_rule(values[9])
  end
  return product
end

-- product_open(product, command): applies a decoded open command
local function product_open(product, command)
  local rule = command.rate_limit
  product.opened, product.is_new = true, true
  product.stock, product.sold, product.limiter = command.stock, 0, '0:0:0'
  product.per_user_limit = command.per_user_limit
  product.start_ms, product.end_ms = command.start_ms, command.end_ms
  product.state, product.price, product.name = command.state, command.price, command.name
  product.rule, product.rate_limit = rule, ''
  if rule then product.rate_limit = rule.algorithm .. ':' .. rule.requests_per_second .. ':' .. rule.burst end
end

-- product_write(product, products_key): writes all that changed
local function product_write(product, products_key)
  if not product.opened then return end
  if product.is_new then
    redis.call('SADD', products_key, product.id)
    redis.call('HSET', product.key,
      'initial', product.stock + product.sold, 'per_user_limit', product.per_user_limit,
      'start_ms', product.start_ms, 'end_ms', product.end_ms, 'price', product.price, 'name', product.name,
      'rate_limit', product.rate_limit)
  end
  redis.call('HSET', product.key,
    'stock', product.stock, 'sold', product.sold, 'state', product.state, 'limiter', product.limiter)
  for code, count in pairs(product.counts) do redis.call('HINCRBY', product.key, 'code:' .. code, count) end
  wins_write(product.buyers_key, product.order, product.fresh)
end
