-- Delete dead letters of one queue.
--
-- ARGV[5]     the queue     ARGV[6]  '1' for all of them
-- ARGV[7...]  the keys of those to delete
-- Returns the keys that were there; of all of them how many there were.
local queue = ARGV[5]
local keys, letters = NS .. 'dead:' .. queue, NS .. 'letters:' .. queue
local deleted = {}
if ARGV[6] == '1' then
  deleted = call('ZCARD', keys)
  call('UNLINK', keys, letters)
else
  for i = 7, #ARGV do
    if call('HDEL', letters, ARGV[i]) == 1 then
      call('ZREM', keys, ARGV[i])
      deleted[#deleted + 1] = ARGV[i]
    end
  end
end
if call('EXISTS', keys) == 0 then call('SREM', NS .. 'dead', queue) end
return deleted
