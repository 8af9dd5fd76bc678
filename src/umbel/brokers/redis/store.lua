-- The small store: one operation on one key.
--
-- <prefix>umbel:store    hash key -> version NUL expires ms or empty NUL value
-- <prefix>umbel:store:x  zset key -> expires ms, of those that expire
-- <prefix>umbel:store:v  counter of versions, so that a deleted key never gets an old one back
-- <prefix>umbel:leases   hash name -> fence NUL ends ms NUL owner
--
-- ARGV[5]  get, put, delete or lease     ARGV[6]  the key or name     ARGV[7...]  what the operation needs
local op, key = ARGV[5], ARGV[6]
local rows, expiries = NS .. 'store', NS .. 'store:x'

local function live(name)
  local value = call('HGET', rows, name)
  if not value then return nil end
  local f = split(value, 2)
  if f[2] ~= '' and tonumber(f[2]) <= NOW then return nil end
  return f
end

local function sweep()
  for _, name in ipairs(call('ZRANGEBYSCORE', expiries, '-inf', digits(NOW), 'LIMIT', 0, 16)) do
    call('HDEL', rows, name)
    call('ZREM', expiries, name)
  end
end

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
  if ARGV[8] ~= '' then
    local f = live(key)
    if (f and f[1] or '0') ~= ARGV[8] then return false end
  end
  local version = digits(call('INCR', NS .. 'store:v'))
  local stop = ''
  if ARGV[9] ~= '' then
    stop = digits(NOW + tonumber(ARGV[9]))
    call('ZADD', expiries, stop, key)
  else
    call('ZREM', expiries, key)
  end
  call('HSET', rows, key, version .. NUL .. stop .. NUL .. ARGV[7])
  return version
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
