-- Discard everything in some keys, and in `due` the queue whose delayed messages they were.
--
-- KEYS     lists or sorted sets of messages
-- ARGV[5]  the queue to take out of `due`, or empty
-- Returns how many messages that was.
local count = 0
for i = 1, #KEYS do
  if call('TYPE', KEYS[i]).ok == 'zset' then count = count + call('ZCARD', KEYS[i])
  else count = count + call('LLEN', KEYS[i]) end
end
call('UNLINK', unpack(KEYS))
if ARGV[5] ~= '' then call('ZREM', NS .. 'due', ARGV[5]) end
return count
