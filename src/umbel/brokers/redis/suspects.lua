-- The consumers that are not known to live. Uses widx and w:<id>.
--
-- Returns for each: id, beat, node, ms since its lease ended (below zero: not yet).
local found = {}
local rows = call('ZRANGE', NS .. 'widx', 0, -1, 'WITHSCORES')
for i = 1, #rows, 2 do
  local known = call('HMGET', NS .. 'w:' .. rows[i], 'beat', 'node')
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = rows[i], known[1] or '0', known[2] or ''
  found[n + 4] = math.floor(NOW - tonumber(rows[i + 1]))
end
return found
