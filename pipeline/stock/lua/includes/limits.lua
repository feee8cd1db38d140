-- Limits of purchases and controls; the same as pipeline/domain/product.py (a test compares them).
local QUANTITY_MAX = 1000000
local STOCK_MAX = 1000000000
local WINS_PER_USER_MAX = 100
