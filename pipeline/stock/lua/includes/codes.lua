-- The answer codes; the same as pipeline/domain/codes.py (a test compares them).
local CODE = {
  SUCCESS = 1,
  NEVER_OPENED = -1,
  INSUFFICIENT_STOCK = -2,
  ALREADY_BOUGHT = -3,
  NOT_ACTIVE = -4,
  NOT_STARTED = -5,
  ENDED = -6,
  INVALID_QUANTITY = -7,
  BUSY = -9,
}
