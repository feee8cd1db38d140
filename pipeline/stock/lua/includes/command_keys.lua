-- The idempotency keys of a product's commands: one value, one line per key, "offset:key", oldest first. A key is
-- visible ASCII and comes last, so it may contain colons.
local COMMAND_KEYS_MAX = 100

-- command_repeated(product, key) -> offset of the command that was applied under this key, as a string, or nil
local function command_repeated(product, key)
  if not key or not product.command_keys then return nil end
  for line in string.gmatch(product.command_keys, '[^\n]+') do
    local offset, used = string.match(line, '^(%d+):(.*)$')
    if used == key then return offset end
  end
  return nil
end

-- command_remember(product, key, offset): adds the key, and forgets the oldest one above the limit
local function command_remember(product, key, offset)
  if not key then return end
  local keys = product.command_keys
  keys = keys and keys .. '\n' .. offset .. ':' .. key or offset .. ':' .. key
  local _, newlines = string.gsub(keys, '\n', '')
  if newlines >= COMMAND_KEYS_MAX then keys = string.match(keys, '^[^\n]*\n(.*)$') end
  product.command_keys, product.has_new_keys = keys, true
end
