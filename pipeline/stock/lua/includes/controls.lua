-- The controls of a live sale: pipeline/domain/controls.py in Lua (a test compares them). Needs `product` and `limits`.

local function control_window(product, command)
  -- In JSON, -0 is a number: adding 0 makes it 0.
  return (command.start_ms or product.start_ms) + 0, (command.end_ms or product.end_ms) + 0
end

-- control_refusal(product, command) -> why the product's state does not allow the command, or nil
local function control_refusal(product, command)
  local kind, state = command.type, product.state
  if state == 'cleaned_up' then return 'cleaned_up' end
  if kind == 'cleanup' then return state ~= 'closed' and 'not_closed' or nil end
  if state == 'closed' then return 'closed' end
  if kind == 'pause' then return state == 'paused' and 'already_paused' or nil end
  if kind == 'resume' then return state ~= 'paused' and 'not_paused' or nil end
  if kind == 'adjust' then
    if product.stock + command.change < 0 then return 'stock_below_zero' end
    return product.stock + product.sold + command.change > STOCK_MAX and 'stock_above_max' or nil
  end
  if kind == 'extend' then
    local start_ms, end_ms = control_window(product, command)
    return end_ms <= start_ms and 'end_before_start' or nil
  end
  return nil
end

-- control_apply(product, command, offset): changes the product as the command says
local function control_apply(product, command, offset)
  local kind = command.type
  if kind == 'adjust' then
    product.stock = product.stock + command.change
    product.adjusted = (product.adjusted or 0) + command.change
    product.is_newly_adjusted = true
  elseif kind == 'pause' then
    product.state = 'paused'
  elseif kind == 'resume' then
    product.state = 'active'
  elseif kind == 'extend' then
    product.start_ms, product.end_ms = control_window(product, command)
    product.has_new_terms = true
  elseif kind == 'limits' then
    product.per_user_limit = command.per_user_limit or product.per_user_limit
    if command.rate_limit then product_limit_rate(product, command.rate_limit) end
    product.has_new_terms = true
  elseif kind == 'close' then
    product.state = 'closed'
  else
    product_clean_up(product)
  end
  command_remember(product, command.key, offset)
end
