-- Move dead letters of one queue back into it, or into another, as if they had never been delivered.
--
-- ARGV[5]     the queue
-- ARGV[6]     where they go
-- ARGV[7...]  two for each: the key, and the message to put in the place of the letter's own, or empty
-- Returns the keys that were there.
local queue, to = ARGV[5], ARGV[6]
local keys, letters = NS .. 'dead:' .. queue, NS .. 'letters:' .. queue
local moved = {}
for i = 7, #ARGV, 2 do
  local letter = call('HGET', letters, ARGV[i])
  if letter then
    local f = split(letter, 6)
    local raw = ARGV[i + 1]
    if raw == '' then raw = f[7] end
    -- First: where that key holds no list, the letter stays as it was.
    call('LPUSH', list_key(to, f[2]), raw)
    forget_crashes(raw)
    call('HDEL', letters, ARGV[i])
    call('ZREM', keys, ARGV[i])
    moved[#moved + 1] = ARGV[i]
  end
end
if call('EXISTS', keys) == 0 then call('SREM', NS .. 'dead', queue) end
return moved
