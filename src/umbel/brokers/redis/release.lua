-- Give back all that a stopped consumer holds, and forget it.
--
-- KEYS[1]  w:<id>     KEYS[2]  inf:<id>
-- ARGV[5]  the id     ARGV[6]  how its process died     ARGV[7]  number of pauses, the pauses in ms
-- then     number of started tags, the tags; for each verdict: tag, kind, detail
-- Returns how many messages were given back.
local pauses, started, verdicts = {}, {}, {}
local at = 7
for i = 1, tonumber(ARGV[at]) do pauses[i] = tonumber(ARGV[at + i]) end
at = at + #pauses + 1
local count = tonumber(ARGV[at])
for i = 1, count do started[ARGV[at + i]] = true end
for i = at + count + 1, #ARGV, 3 do verdicts[ARGV[i]] = {ARGV[i + 1], ARGV[i + 2]} end

local tags = call('HKEYS', KEYS[2])
-- The latest first, so that the earliest ends up at the head.
table.sort(tags, function(a, b) return tonumber(a) > tonumber(b) end)
for i = 1, #tags do
  local tag = tags[i]
  local m = open_held(call('HGET', KEYS[2], tag))
  local verdict = verdicts[tag]
  -- One that was to be ended, and whose process had to be ended instead, must not come round for ever.
  local again = verdict and m.kind ~= ''
  if verdict and m.kind == '' then m.kind, m.detail = verdict[1], verdict[2] end
  give_back(m, started[tag] or m.once or again, pauses, ARGV[5], ARGV[6])
end
call('DEL', KEYS[2], KEYS[1])
call('ZREM', NS .. 'widx', ARGV[5])
return #tags
