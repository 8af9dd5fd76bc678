-- Put a row of the small store and queue messages, if the row has the right version.
--
-- ARGV[5] key, ARGV[6] value, ARGV[7] version that must be there (0: none)
-- ARGV[8]     how many ms a repeat of a task id is recognised
-- ARGV[9...]  three arguments for each message (see give.lua)
-- Returns the new version, or nothing.
if not has_version(ARGV[5], ARGV[7]) then return false end
for i = 9, #ARGV, 3 do
  local key, option, raw = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if key == '' then
    local _, failure = put_special(option, raw, ARGV[8])
    if failure then return failure end
  else
    local mark = option ~= '' and NS .. 'seen:' .. option
    if not (mark and call('EXISTS', mark) == 1) then
      -- In this order: where the key holds no list, the message must not count as a repeat the next time.
      call('LPUSH', key, raw)
      if mark then call('SET', mark, '1', 'PX', ARGV[8]) end
    end
  end
end
return put_row(ARGV[5], ARGV[6], '')
