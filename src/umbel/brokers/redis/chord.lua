-- One operation on a chord.
--
-- KEYS[1]  celery-taskset-meta-<gid>, the base of its keys
-- ARGV[5]  add: index, task id, encoded part, seconds or empty. Returns the claim token or nothing.
--          close: token. Returns whether it was this token's to close.
if ARGV[5] == 'add' then return add_part(KEYS[1], ARGV[6], ARGV[7], ARGV[8], ARGV[9]) or false end
return close_chord(KEYS[1], ARGV[6])
