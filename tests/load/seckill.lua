-- Load on the purchase calls, with wrk (https://github.com/wg/wrk).
--
--   wrk -t2 -c64 -d10s --latency -s tests/load/seckill.lua http://127.0.0.1:8083 -- [PRODUCT] [async|sync] [USERS] [TOKENS]
--
--   PRODUCT  id of an open product; default: the environment variable SECKILL_PRODUCT, or 1001
--   async    (default) 202 once the purchase is in the log;  sync  waits for the decision;
--            both answer final refusals, such as sold out, at once and without the log
--   USERS    number of different users, drawn at random; default 1,000,000,000, so that hardly any user repeats
--
-- Open the product first (administration listener, port 8084):
--
--   curl -sS http://127.0.0.1:8084/api/v1/seckill/activity/prewarm -H 'Content-Type: application/json' -d '{
--     "product_id": "1001", "product_name": "phone", "price": "1999.00", "stock": 100, "status": "active",
--     "start_time": "2026-01-01T00:00:00Z", "end_time": "2030-01-01T00:00:00Z"}'
--
-- At the end it prints the number of answers per HTTP status and per code (a 202 has none yet), and of those given
-- without the log. wrk reports every status above 399 as "Non-2xx"; a 409 just means that the stock is sold out.

local PATHS = { async = '/api/v1/seckill/purchase/async', sync = '/api/v1/seckill/purchase' }
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
  thread:set('thread_number', #threads)
end

function init(args)
  local mode = args[2] or 'async'
  path = PATHS[mode] or error('the second argument is async or sync, not ' .. mode)
  product = args[1] or os.getenv('SECKILL_PRODUCT') or '1001'
  users = tonumber(args[3] or 1e9) or error('the third argument is a number of users, not ' .. args[3])
  tokens = args[4] and read_tokens(args[4])
  statuses, codes, without_log = {}, {}, {}
  math.randomseed(os.time() * 1000 + thread_number)
  wrk.method = 'POST'
  wrk.headers['Content-Type'] = 'application/json'
end

function read_tokens(path)
  local found = {}
  for line in io.lines(path) do found[#found + 1] = 'Bearer ' .. line end
  -- Each thread begins elsewhere, so that they do not use the same token at the same time.
  next_token = math.floor(#found / 2) * thread_number
  return found
end

function request()
  if tokens then
    next_token = next_token % #tokens + 1
    wrk.headers['Authorization'] = tokens[next_token]
    return wrk.format(nil, path, nil, string.format('{"product_id":"%s"}', product))
  end
  local body = string.format('{"product_id":"%s","user_id":"%.0f"}', product, math.random(1, users))
  return wrk.format(nil, path, nil, body)
end

function response(status, _, body)
  statuses[status] = (statuses[status] or 0) + 1
  local code = string.match(body, '"code":(-?%d+)')
  if not code then return end
  codes[code] = (codes[code] or 0) + 1
  -- Problem documents may have a code too, but they also have a type.
  if not string.find(body, '"request_id"', 1, true) and not string.find(body, '"type"', 1, true) then
    without_log[code] = (without_log[code] or 0) + 1
  end
end

local function print_counts(name)
  local sum, keys = {}, {}
  for _, thread in ipairs(threads) do
    for key, count in pairs(thread:get(name)) do
      if not sum[key] then keys[#keys + 1] = key end
      sum[key] = (sum[key] or 0) + count
    end
  end
  table.sort(keys, function(a, b) return tonumber(a) < tonumber(b) end)
  for _, key in ipairs(keys) do print(string.format('  %-11s %6s %10d', name, key, sum[key])) end
end

function done()
  print('Answers:')
  print_counts('statuses')
  print_counts('codes')
  print_counts('without_log')
end
