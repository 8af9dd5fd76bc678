-- Queue messages; skip those that are there already.
--
-- ARGV[5]     how many ms a repeat of a task id is recognised
-- ARGV[6...]  three arguments for each message (see give.lua)
-- Returns {position from 0, id that holds the key or empty, ...} of those that were not queued.
local repeat_ms = ARGV[5]
local refused = {}
local list, waiting, marks = nil, {}, {}

-- Neighbours of one list go in one command, which takes less than 8,000 words. Returns an error, or nothing.
local function flush()
  if #waiting == 0 then return end
  local done = redis.pcall('LPUSH', list, unpack(waiting))
  if type(done) == 'table' and done.err then
    -- The key holds no list. What was not queued must not count as a repeat the next time.
    if #marks > 0 then call('DEL', unpack(marks)) end
    return done
  end
  waiting, marks = {}, {}
end

for i = 6, #ARGV, 3 do
  local key, option, raw = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local holder, failure
  if key == '' then
    failure = flush()
    if not failure then holder, failure = put_special(option, raw, repeat_ms) end
  else
    local mark = option ~= '' and NS .. 'seen:' .. option
    if mark and not call('SET', mark, '1', 'NX', 'PX', repeat_ms) then
      holder = ''
    else
      if key ~= list or #waiting >= 500 then
        failure = flush()
        list = key
      end
      waiting[#waiting + 1] = raw
      if mark then marks[#marks + 1] = mark end
    end
  end
  if failure then return failure end
  if holder then
    refused[#refused + 1] = (i - 6) / 3
    refused[#refused + 1] = holder
  end
end
return flush() or refused
