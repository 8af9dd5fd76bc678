-- The rows of the small store.
--
-- <prefix>umbel:store    hash key -> version NUL expires ms or empty NUL value
-- <prefix>umbel:store:x  zset key -> expires ms, of those that expire
-- <prefix>umbel:store:v  counter of versions, so that a deleted key never gets an old one back
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

-- Whether the row has this version; 0: it is not there, empty: whatever it has.
local function has_version(name, version)
  if version == '' then return true end
  local f = live(name)
  return (f and f[1] or '0') == version
end

-- `ttl`: ms to live or empty. Returns the new version.
local function put_row(name, value, ttl)
  local version = digits(call('INCR', NS .. 'store:v'))
  local stop = ''
  if ttl ~= '' then
    stop = digits(NOW + tonumber(ttl))
    call('ZADD', expiries, stop, name)
  else
    call('ZREM', expiries, name)
  end
  call('HSET', rows, name, version .. NUL .. stop .. NUL .. value)
  return version
end
