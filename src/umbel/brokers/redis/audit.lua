-- Claim chords whose parts are all in and that nobody completes: whoever had to is dead, a worker of Celery's perhaps.
--
-- KEYS[1]  umbel:chords (see results.lua)     ARGV[5]  how many to look at     ARGV[6]  the token to claim them with
-- Returns {base key, note, ...}. One that is not completed within its claim comes again.
local AUDIT_SECONDS = 60
local second = math.floor(NOW / 1000)
local found = {}
for _, base in ipairs(call('ZRANGEBYSCORE', KEYS[1], '-inf', second, 'LIMIT', 0, ARGV[5])) do
  local note = call('GET', base .. '.b')
  local claim = call('GET', base .. '.c')
  local full = is_full(base, call('TYPE', base .. '.j').ok == 'list')
  if not note or claim == 'done' then
    -- Celery's workers know nothing of the note.
    call('ZREM', KEYS[1], base)
    call('DEL', base .. '.b')
  elseif full and not claim then
    call('SET', base .. '.c', ARGV[6], 'EX', AUDIT_SECONDS)
    call('ZADD', KEYS[1], second + AUDIT_SECONDS + 1, base)
    found[#found + 1] = base
    found[#found + 1] = note
  else
    -- Without a size it failed in a worker of Celery's, or its client still sends its members.
    call('ZADD', KEYS[1], second + (full == nil and 10 * LOOK_SECONDS or LOOK_SECONDS), base)
  end
end
return found
