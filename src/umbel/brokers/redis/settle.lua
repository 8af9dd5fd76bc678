-- End holds, each with all that belongs to it, and reserve more.
--
-- KEYS as in reserve.lua.
-- ARGV[5]     the database of results; empty: this one     ARGV[6]  the broker's database
-- ARGV[7]     how many to reserve                          ARGV[8...]  start, queues, steps as in reserve_only.lua
-- then        for each settlement: tag, spec, and the arguments of each letter of the spec, in this order:
--   A  ack                             Q, q  requeue, counted or not
--   D  delay: due ms                   P     park: gate
--   X  dead letter: reason, detail, traceback, how many to keep, what to keep in place of the message (empty: itself)
--   N  forget its crashed deliveries
--   R  result: key, state, ms, payload
--   C  chord part: base key, index, task id, payload, seconds, 'list' or empty, note or empty (see results.lua)
--   L  close its chord: base key, token
--   S  more results: number, the arguments of R for each            E  parts before C: number, the arguments of C for each
--   M  messages: number, three arguments each (see give.lua)        F  free: number, gates and unique keys
-- Returns {refused tags, {tag, claim token, ...} of last parts, the reply of reserve or {}, 'gone' or 'live'}.
local inf = KEYS[2]
local refused, complete, results, others, requeued = {}, {}, {}, {}, {}

local function refuse(tag) refused[#refused + 1] = tag end

-- Where the arguments of each letter begin, and where the next settlement does.
local function positions(spec, at)
  local found = {}
  for i = 1, #spec do
    local letter = sub(spec, i, i)
    found[letter] = at
    if letter == 'D' or letter == 'P' then at = at + 1
    elseif letter == 'R' then at = at + 4
    elseif letter == 'X' then at = at + 5
    elseif letter == 'C' then at = at + 7
    elseif letter == 'L' then at = at + 2
    elseif letter == 'S' then at = at + 1 + 4 * tonumber(ARGV[at])
    elseif letter == 'E' then at = at + 1 + 7 * tonumber(ARGV[at])
    elseif letter == 'M' then at = at + 1 + 3 * tonumber(ARGV[at])
    elseif letter == 'F' then at = at + 1 + tonumber(ARGV[at]) end
  end
  return found, at
end

local function check(tag, spec, at)
  local found, stop = positions(spec, at)
  local value = call('HGET', inf, tag)
  if not value then refuse(tag)
  else
    -- The last part of a chord keeps its hold, which is known only after it is counted; the place is taken either way.
    call('HDEL', inf, tag)
    others[#others + 1] = {tag = tag, value = value, found = found}
    if found.R then results[#results + 1] = found.R end
    if found.S then
      for i = 0, tonumber(ARGV[found.S]) - 1 do results[#results + 1] = found.S + 1 + 4 * i end
    end
  end
  return stop
end

local function part_at(at)
  return add_part(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6])
end

local function move(item)
  local found = item.found
  if found.A then return end
  local m = open_held(item.value)
  if found.Q or found.q then
    item.message = m
    requeued[#requeued + 1] = item
  elseif found.D then delay(m.queue, m.step, tonumber(ARGV[found.D]), m.raw)
  elseif found.P then park(ARGV[found.P], m.queue, m.step, '', m.raw)
  elseif found.X then
    local at = found.X
    bury(m, ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4])
  end
end

local function apply(item)
  local found = item.found
  -- Free before publishing: a retry takes the unique key of its task again.
  if found.F then
    for i = found.F + 1, found.F + tonumber(ARGV[found.F]) do free(ARGV[i]) end
  end
  if found.M then
    for i = found.M + 1, found.M + 3 * tonumber(ARGV[found.M]), 3 do
      if ARGV[i] ~= '' then push('LPUSH', ARGV[i], ARGV[i + 2])
      else put_special(ARGV[i + 1], ARGV[i + 2], '1', true) end
    end
  end
  move(item)
  -- After the move: a dead letter takes the log of its crashes along.
  if found.N then forget_crashes(open_held(item.value).raw) end
end

local limit = tonumber(ARGV[7])
local queues = tonumber(ARGV[9])
local at = 10 + queues + 1 + tonumber(ARGV[10 + queues])
local total = 0
while at <= #ARGV do
  local tag, spec = ARGV[at], ARGV[at + 1]
  total = total + 1
  at = at + 2
  if spec == 'AR' then
    if call('HDEL', inf, tag) == 1 then results[#results + 1] = at else refuse(tag) end
    at = at + 4
  elseif spec == 'A' then
    if call('HDEL', inf, tag) == 0 then refuse(tag) end
  else
    at = check(tag, spec, at)
  end
end

local elsewhere = ARGV[5] ~= '' and (#results > 0 or #others > 0)
if elsewhere then call('SELECT', ARGV[5]) end
for i = 1, #results do
  local r = results[i]
  put_result(ARGV[r], ARGV[r + 1], ARGV[r + 2], ARGV[r + 3])
end
for i = 1, #others do
  local c, l, e = others[i].found.C, others[i].found.L, others[i].found.E
  if e then
    for p = e + 1, e + 7 * tonumber(ARGV[e]), 7 do others[i].claim = others[i].claim or part_at(p) end
  end
  if c then others[i].claim = part_at(c) or others[i].claim end
  if l then close_chord(ARGV[l], ARGV[l + 1]) end
end
if elsewhere then call('SELECT', ARGV[6]) end

for i = 1, #others do
  local item = others[i]
  if item.claim then
    call('HSET', inf, item.tag, item.value)
    complete[#complete + 1] = item.tag
    complete[#complete + 1] = item.claim
  else
    apply(item)
  end
end
-- The latest first, so that the earliest ends up at the head.
table.sort(requeued, function(a, b) return tonumber(a.tag) > tonumber(b.tag) end)
local id = sub(KEYS[1], #NS + 3)  -- after "w:"
for i = 1, #requeued do
  give_back(requeued[i].message, requeued[i].found.Q ~= nil, nil, id, 'given back as crashed')
end

local state = 'live'
local reply = {}
if limit > 0 then
  reply = reserve_as_told(limit, 8)
  if reply[1] == 'gone' then state = 'gone' end
elseif #refused > 0 and call('HGET', KEYS[1], 'state') ~= 'live' then
  state = 'gone'
end
return {refused, complete, reply, state}
