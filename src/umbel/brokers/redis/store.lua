-- The small store: one operation on one key (see rows.lua).
--
-- <prefix>umbel:leases   hash name -> fence NUL ends ms NUL owner
--
-- ARGV[5]  get, put, delete or lease     ARGV[6]  the key or name     ARGV[7...]  what the operation needs
local op, key = ARGV[5], ARGV[6]

local operations = {}

-- Returns {version, value}, or nothing.
function operations.get()
  local f = live(key)
  return f and {f[1], f[3]} or false
end

-- ARGV[7] value, ARGV[8] version that must be there or empty (0: none), ARGV[9] ms to live or empty.
-- Returns the new version, or nothing.
function operations.put()
  sweep()
  return has_version(key, ARGV[8]) and put_row(key, ARGV[7], ARGV[9])
end

-- Returns 1 if it was there.
function operations.delete()
  local there = live(key)
  call('HDEL', rows, key)
  call('ZREM', expiries, key)
  return there and 1 or 0
end

-- ARGV[7] owner, ARGV[8] ms. Returns the fence, or nothing.
function operations.lease()
  local fence = 0
  local value = call('HGET', NS .. 'leases', key)
  if value then
    local f = split(value, 2)
    fence = tonumber(f[1])
    local held = tonumber(f[2]) > NOW
    if held and f[3] ~= ARGV[7] then return false end
    if not held then fence = fence + 1 end
  else
    fence = 1
  end
  call('HSET', NS .. 'leases', key, digits(fence) .. NUL .. digits(NOW + tonumber(ARGV[8])) .. NUL .. ARGV[7])
  return digits(fence)
end

return operations[op]()
