-- One operation on a chord.
--
-- KEYS[1]  celery-taskset-meta-<gid>, the base of its keys
-- ARGV[5]  add: index, task id, encoded part, seconds or empty, 'list' or empty, note or empty. Returns the claim token
--          or nothing.
--          close: token. Returns whether it was this token's to close.
--          extend: how many members more it waits for.
if ARGV[5] == 'add' then
  return add_part(KEYS[1], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]) or false
end
if ARGV[5] == 'extend' then return call('INCRBY', KEYS[1] .. '.t', ARGV[6]) end
return close_chord(KEYS[1], ARGV[6])
