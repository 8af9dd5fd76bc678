-- Reserve. KEYS as in reserve.lua.
--
-- ARGV[5]  how many     ARGV[6...]  start, number of queues, the queues, number of steps, the steps
local reply = reserve_as_told(tonumber(ARGV[5]), 6)
return reply
