-- How many messages of one queue are held. Uses widx and inf:<id>.
--
-- ARGV[5]  the queue
local start = ARGV[5] .. NUL
local count = 0
for _, id in ipairs(call('ZRANGE', NS .. 'widx', 0, -1)) do
  for _, value in ipairs(call('HVALS', NS .. 'inf:' .. id)) do
    if sub(value, 1, #start) == start then count = count + 1 end
  end
end
return count
