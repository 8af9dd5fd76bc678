-- Make a consumer id that was never used before, alive from now.
--
-- ARGV[5]  node     ARGV[6]  a random word     ARGV[7]  ms that the lease lasts
-- Returns the id.

-- Close to the time, so that the counter grows on although the server may come back with older data.
local epoch = math.max(tonumber(call('GET', NS .. 'epoch') or 0) + 1, math.floor(NOW_US / 1000000) * 1000)
call('SET', NS .. 'epoch', digits(epoch))
local id = ARGV[5] .. ':' .. digits(epoch) .. ':' .. ARGV[6]
call('HSET', NS .. 'w:' .. id, 'state', 'live', 'beat', '0', 'node', ARGV[5], 'started', digits(NOW))
call('ZADD', NS .. 'widx', digits(NOW + tonumber(ARGV[7])), id)
return id
