-- Take messages out of the schedule of one queue.
--
-- ARGV[5]     the queue
-- ARGV[6...]  two arguments for each message: its due moment in ms, and the message
-- Returns how many were there.
local PAGE = 100
local queue = ARGV[5]
local key = NS .. 'delayed:' .. queue
local count = 0

-- By moment: a schedule may have thousands of one moment, and is looked through once for all of these.
local moments, wanted = {}, {}
for i = 6, #ARGV, 2 do
  local due, raw = ARGV[i], ARGV[i + 1]
  if not wanted[due] then
    moments[#moments + 1] = due
    wanted[due] = {left = 0, raws = {}}
  end
  local these = wanted[due]
  these.left = these.left + 1
  these.raws[raw] = (these.raws[raw] or 0) + 1
end

for _, due in ipairs(moments) do
  local these, passed = wanted[due], 0
  local raws = these.raws
  -- The moment went through a clock of microseconds: it may be off by one.
  local first, last = digits(tonumber(due) - 1), digits(tonumber(due) + 1)
  while these.left > 0 do
    local page = call('ZRANGEBYSCORE', key, first, last, 'LIMIT', passed, PAGE)
    for _, member in ipairs(page) do
      local raw = split(member, 2)[3]
      if (raws[raw] or 0) > 0 then
        raws[raw], these.left = raws[raw] - 1, these.left - 1
        count = count + call('ZREM', key, member)
      else
        passed = passed + 1
      end
    end
    if #page < PAGE then break end
  end
end
local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
if first[1] then call('ZADD', NS .. 'due', first[2], queue) else call('ZREM', NS .. 'due', queue) end
return count
