-- Queue one message, unless its publish is a repeat.
--
-- KEYS[1]  one of Celery's lists      KEYS[2]  seen:<task id>
-- ARGV[1]  how many ms a repeat is recognised     ARGV[2]  the message
-- Returns whether it was queued.
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1]) then return 0 end
local done = redis.pcall('LPUSH', KEYS[1], ARGV[2])
if type(done) == 'table' and done.err then
  -- The key holds no list. What was not queued must not count as a repeat the next time.
  redis.call('DEL', KEYS[2])
  return done
end
return 1
