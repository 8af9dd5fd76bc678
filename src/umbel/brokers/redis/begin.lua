-- Mark deliveries as started.
--
-- KEYS[1]     inf:<id>
-- ARGV[5]     the database of results; empty: this one
-- ARGV[6]     the broker's database
-- ARGV[7...]  six for each: tag, '1' for never again, result key or empty, state, ms, payload
-- Returns the tags that are not held.
local refused, results = {}, {}
for i = 7, #ARGV, 6 do
  local tag = ARGV[i]
  local held
  if ARGV[i + 1] == '1' then
    local value = call('HGET', KEYS[1], tag)
    held = value and 1 or 0
    if value then
      local f = split(value, 7)
      f[5] = '1'
      call('HSET', KEYS[1], tag, table.concat(f, NUL))
    end
  else
    held = call('HEXISTS', KEYS[1], tag)
  end
  if held == 0 then refused[#refused + 1] = tag
  elseif ARGV[i + 2] ~= '' then results[#results + 1] = i + 2 end
end
if #results > 0 then
  if ARGV[5] ~= '' then call('SELECT', ARGV[5]) end
  for _, at in ipairs(results) do put_result(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]) end
  if ARGV[5] ~= '' then call('SELECT', ARGV[6]) end
end
return refused
