-- What every script is told first, and the time.
--
-- ARGV[1]  the prefix of all keys           ARGV[2]  microseconds since the epoch; empty: this server's TIME
-- ARGV[3]  between a queue and its step     ARGV[4]  deliveries that may crash; 0 for no limit
--
-- Keys of our own, all under <prefix>umbel:
--   epoch           counter of consumer ids
--   fence           the last fence given out; fences are the tags of holds as well
--   w:<id>          hash of one consumer: state (live, reaped), beat, node, started
--   widx            zset consumer id -> end of its lease in ms; the index for sweeps
--   inf:<id>        hash tag -> held message (see give.lua)
--   ends:<queue>    list of messages ended outside an engine (see give.lua)
--   dc              hash sha1 of a message -> deliveries of it that crashed; only for those that had one
--   crashes         hash sha1 of the same messages -> lines of ms TAB id of the consumer TAB cause, the latest last
--   delayed:<queue> zset of messages -> due moment in ms (see give.lua)
--   due             zset queue -> due moment of its first delayed message
--   ids             counter that keeps equal delayed messages apart, and gives dead letters their keys
--   gate:<name>     list of messages that wait at a gate (see give.lua)
--   dead            set of the queues that have dead letters
--   dead:<queue>    zset of the keys of its dead letters; the score is the key itself
--   letters:<queue> hash key -> dead letter (see give.lua)
--   unique:<key>    id of the task that holds the key
--   seen:<id>       set while a publish of this task id counts as a repeat
--   store, store:x  hash and zset of the small store (see store.lua)
local NUL = '\0'
local P, SEP, MAX = ARGV[1], ARGV[3], tonumber(ARGV[4])
local NS = P .. 'umbel:'
local call, find, sub, fmt = redis.call, string.find, string.sub, string.format
local NOW_US = tonumber(ARGV[2])
if not NOW_US then
  local time = call('TIME')
  NOW_US = time[1] * 1000000 + time[2]
end
local NOW = math.floor(NOW_US / 1000)

-- Lua writes large numbers as 1.7e+15; keys and fields need every digit.
local function digits(number) return fmt('%.0f', number) end

-- Split off `count` fields; what is left, which may hold NUL itself, comes last.
local function split(text, count)
  local fields, at = {}, 1
  for i = 1, count do
    local stop = find(text, NUL, at, true)
    fields[i] = sub(text, at, stop - 1)
    at = stop + 1
  end
  fields[count + 1] = sub(text, at)
  return fields
end
