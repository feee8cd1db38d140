-- Rate limiters: pipeline/domain/limiters.py in Lua, integer for integer. A state is the string "level:before:at".
local WINDOW_MS = 1000

-- limiter_admissible(rule, state, time_ms) -> how many requests may pass, level, before, at
local function limiter_admissible(rule, state, time_ms)
  local level, before, at = string.match(state, '^(%d+):(%d+):(%d+)$')
  level, before, at = tonumber(level), tonumber(before), tonumber(at)
  if rule.algorithm == 'token_bucket' then
    local backlog = math.max(0, level - (time_ms - at) * rule.requests_per_second)
    return math.floor((rule.burst * 1000 - backlog) / 1000), backlog, 0, time_ms
  end
  local window = math.floor(time_ms / WINDOW_MS)
  if window ~= at then
    if window == at + 1 then before = level else before = 0 end
    level = 0
  end
  if rule.algorithm == 'fixed_window' then
    return math.max(0, rule.requests_per_second - level), level, 0, window
  end
  local carried = before * (WINDOW_MS - time_ms % WINDOW_MS)
  local room = math.floor((rule.requests_per_second * WINDOW_MS - carried) / WINDOW_MS) - level
  return math.max(0, room), level, before, window
end

local function limiter_fade_ms(rule, before, count)
  local room = (rule.requests_per_second - count - 1) * WINDOW_MS
  if before == 0 or room >= before * WINDOW_MS then return 0 end
  return WINDOW_MS - math.floor(room / before)
end

-- limiter_retry_after_ms(rule, level, before, time_ms) -> ms until one more request may pass if no other comes first
local function limiter_retry_after_ms(rule, level, before, time_ms)
  if rule.algorithm == 'token_bucket' then
    return math.max(1, math.ceil((level + 1000 - rule.burst * 1000) / rule.requests_per_second))
  end
  local rest = WINDOW_MS - time_ms % WINDOW_MS
  if rule.algorithm == 'fixed_window' then return rest end
  if level >= rule.requests_per_second then return rest + limiter_fade_ms(rule, level, 0) end
  return math.max(1, limiter_fade_ms(rule, before, level) - time_ms % WINDOW_MS)
end
