-- Take over from a consumer whose lease is over, a batch at a time.
--
-- KEYS[1]  w:<id>     KEYS[2]  inf:<id>
-- ARGV[5]  the id     ARGV[6]  the beat that was seen     ARGV[7]  '1': whatever the clock says
-- ARGV[8]  how many at most     ARGV[9]  number of pauses, the pauses in ms
-- Returns {how many were moved, how many are left}.
local state = call('HGET', KEYS[1], 'state')
if not state then
  -- Its record is gone (evicted, say): nobody can renew it, and what it holds must not lie there for ever.
  if call('EXISTS', KEYS[2]) == 0 then
    call('ZREM', NS .. 'widx', ARGV[5])
    return {0, 0}
  end
elseif state == 'live' then
  if call('HGET', KEYS[1], 'beat') ~= ARGV[6] then return {0, 0} end
  local stop = call('ZSCORE', NS .. 'widx', ARGV[5])
  if ARGV[7] ~= '1' and stop and tonumber(stop) > NOW then return {0, 0} end
  call('HSET', KEYS[1], 'state', 'reaped')
  -- From here on it is over whatever the clock says, though that may go back before all is moved.
  call('ZADD', NS .. 'widx', 0, ARGV[5])
end

local pauses = {}
for i = 1, tonumber(ARGV[9]) do pauses[i] = tonumber(ARGV[9 + i]) end
local tags = call('HKEYS', KEYS[2])
-- The latest first, so that the earliest ends up at the head.
table.sort(tags, function(a, b) return tonumber(a) > tonumber(b) end)
local moved = math.min(#tags, tonumber(ARGV[8]))
for i = 1, moved do
  give_back(open_held(call('HGET', KEYS[2], tags[i])), true, pauses, ARGV[5], 'its worker was lost')
  call('HDEL', KEYS[2], tags[i])
end
-- Last: as long as it is there, another reaper finds what is left.
if moved == #tags then
  call('DEL', KEYS[2], KEYS[1])
  call('ZREM', NS .. 'widx', ARGV[5])
end
return {moved, #tags - moved}
