-- index_text(i) -> the index from 0 of the i-th purchase, as a string.
-- Cached: concatenating a number costs a sprintf, and there are hundreds of thousands a second.
local index_texts = {}
local function index_text(i)
  local text = index_texts[i]
  if not text then
    text = tostring(i - 1)
    index_texts[i] = text
  end
  return text
end
