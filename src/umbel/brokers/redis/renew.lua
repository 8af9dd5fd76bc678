-- Keep consumers alive. Uses w:<id> and widx.
--
-- ARGV[5]  ms that the lease lasts     ARGV[6...]  ids
-- Returns the ids that are lost.
local lost = {}
local stop = digits(NOW + tonumber(ARGV[5]))
for i = 6, #ARGV do
  local key = NS .. 'w:' .. ARGV[i]
  if call('HGET', key, 'state') == 'live' then
    call('HINCRBY', key, 'beat', 1)
    call('ZADD', NS .. 'widx', stop, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
