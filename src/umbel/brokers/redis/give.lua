-- Putting messages where they belong. The message itself is never decoded: what we know of it lies beside it.
--
-- held        queue NUL step NUL reserved ms NUL crashed+1 NUL once NUL verdict NUL detail NUL message
-- ends        step NUL crashed+1 NUL verdict NUL detail NUL message
-- delayed     15 digits NUL step NUL message            (the digits keep equal moments in order)
-- letter      ms when it died NUL step NUL reason NUL detail NUL traceback NUL crashes NUL message
-- gate        queue NUL step NUL due ms NUL message
-- published   three arguments: list key, repeat key or empty, message. With an empty list key the second one is
--             queue NUL step NUL repeat key NUL due ms NUL gate NUL unique key NUL its ms NUL task id
local DC_SECONDS = 2592000
local KEEP_CRASHES = 20
local KEEP_ASTRAY = 10000  -- dead letters of a queue whose key holds no list

local function list_key(queue, step)
  if step == '0' then return P .. queue end
  return P .. queue .. SEP .. step
end

-- The queue and the step of one of Celery's lists.
local function queue_of(key)
  local name = sub(key, #P + 1)
  local step = string.match(name, '%d+$') or ''
  local queue = sub(name, 1, -1 - #SEP - #step)
  if step ~= '' and queue .. SEP .. step == name then return queue, step end
  return name, '0'
end

local function delay(queue, step, due, raw)
  local member = fmt('%015.0f', call('INCR', NS .. 'ids')) .. NUL .. step .. NUL .. raw
  call('ZADD', NS .. 'delayed:' .. queue, digits(due), member)
  call('ZADD', NS .. 'due', 'LT', digits(due), queue)
end

local function open_held(value)
  local f = split(value, 7)
  return {queue = f[1], step = f[2], count = tonumber(f[4]), once = f[5] ~= '', kind = f[6], detail = f[7], raw = f[8]}
end

local function to_ends(m)
  call('RPUSH', NS .. 'ends:' .. m.queue,
    m.step .. NUL .. m.count .. NUL .. m.kind .. NUL .. m.detail .. NUL .. m.raw)
end

local function note_crash(m, who, cause)
  local log, id = NS .. 'crashes', redis.sha1hex(m.raw)
  local lines = call('HGET', log, id)
  lines = (lines and lines .. '\n' or '') .. digits(NOW) .. '\t' .. who .. '\t' .. cause
  local _, breaks = string.gsub(lines, '\n', '')
  if breaks >= KEEP_CRASHES then lines = sub(lines, find(lines, '\n', 1, true) + 1) end
  call('HSET', log, id, lines)
  call('EXPIRE', log, DC_SECONDS)
end

-- A message that ended: it has no crashes any more.
local function forget_crashes(raw)
  local id = redis.sha1hex(raw)
  call('HDEL', NS .. 'dc', id)
  call('HDEL', NS .. 'crashes', id)
end

-- `instead`: what is kept in place of the message; empty for the message itself.
local function bury(m, reason, detail, traceback, keep, instead)
  local key, keys, letters = digits(call('INCR', NS .. 'ids')), NS .. 'dead:' .. m.queue, NS .. 'letters:' .. m.queue
  local crashes = call('HGET', NS .. 'crashes', redis.sha1hex(m.raw)) or ''
  local letter = {digits(NOW), m.step, reason, detail, traceback, crashes, instead ~= '' and instead or m.raw}
  call('HSET', letters, key, table.concat(letter, NUL))
  call('ZADD', keys, key, key)
  call('SADD', NS .. 'dead', m.queue)
  for _, old in ipairs(call('ZRANGE', keys, 0, -1 - keep)) do
    call('ZREM', keys, old)
    call('HDEL', letters, old)
  end
end

-- Put a message at the tail (LPUSH) or the head (RPUSH) of one of Celery's lists. Where that key holds something else
-- the message becomes a dead letter: a script that ends with an error is not undone, and the rest would be lost.
local function push(command, key, raw)
  local done = redis.pcall(command, key, raw)
  if type(done) ~= 'table' or not done.err then return end
  -- Any other refusal is for whoever called.
  if not find(done.err, 'WRONGTYPE', 1, true) then
    call(command, key, raw)
    return
  end
  local queue, step = queue_of(key)
  bury({queue = queue, step = step, raw = raw}, 'unpublishable', "its queue's key holds no list", '', KEEP_ASTRAY, '')
end

-- A hold ended without an outcome: back to the head, or to the ends. `crashed`: this delivery counts, and the log will
-- say `who` held it and the `cause`. `pauses`: how many ms the second, third ... redelivery waits; nil for no wait.
local function give_back(m, crashed, pauses, who, cause)
  local crashes = m.count
  if crashed then
    note_crash(m, who, cause)
    m.count = crashes + 1
  end
  if m.kind ~= '' then return to_ends(m) end
  if not crashed then return push('RPUSH', list_key(m.queue, m.step), m.raw) end
  if m.once then
    m.kind, m.detail = 'lost', 'its process died while it ran'
    return to_ends(m)
  end
  if MAX > 0 and crashes >= MAX then
    call('HDEL', NS .. 'dc', redis.sha1hex(m.raw))
    m.kind, m.detail = 'max_deliveries', 'its worker died in each of ' .. crashes .. ' deliveries'
    return to_ends(m)
  end
  call('HSET', NS .. 'dc', redis.sha1hex(m.raw), crashes)
  call('EXPIRE', NS .. 'dc', DC_SECONDS)
  local pause = pauses and crashes > 1 and (pauses[crashes - 1] or pauses[#pauses])
  if pause and pause > 0 then return delay(m.queue, m.step, NOW + pause, m.raw) end
  push('RPUSH', list_key(m.queue, m.step), m.raw)
end

local function park(gate, queue, step, due, raw)
  call('LPUSH', NS .. 'gate:' .. gate, queue .. NUL .. step .. NUL .. due .. NUL .. raw)
end

-- Let one message through the gate of that name, and give up the unique key of that name.
local function free(name)
  call('DEL', NS .. 'unique:' .. name)
  local waiting = call('RPOP', NS .. 'gate:' .. name)
  if not waiting then return end
  local f = split(waiting, 3)
  local due = tonumber(f[3])
  if due and due > NOW then return delay(f[1], f[2], due, f[4]) end
  push('RPUSH', list_key(f[1], f[2]), f[4])
end

-- Whether Celery's workers alone serve this server: they hold an early message themselves, and know no schedule of ours.
-- Where neither kind of worker was seen, the schedule is right: a worker of ours will look there.
local function only_celery()
  return call('EXISTS', P .. '_kombu.binding.celery.pidbox') == 1
    and #call('ZRANGEBYSCORE', NS .. 'widx', digits(NOW), '+inf', 'LIMIT', 0, 1) == 0
end

-- Publish a message with more to it than a list. Returns nothing, or the id that holds its key, or nil and the error of
-- a key that holds no list. `continues`: part of a settlement, so it may take the key that its own task holds, and what
-- cannot be queued is kept.
local function put_special(options, raw, repeat_ms, continues)
  local f = split(options, 7)
  local queue, step, seen, due, gate, unique, task = f[1], f[2], f[3], tonumber(f[4]), f[5], f[6], f[8]
  if unique ~= '' then
    local holder = call('GET', NS .. 'unique:' .. unique)
    if holder and not (continues and holder == task) then return holder end
  end
  if seen ~= '' and not call('SET', NS .. 'seen:' .. seen, '1', 'NX', 'PX', repeat_ms) then return task end
  if unique ~= '' then
    if f[7] == '' then call('SET', NS .. 'unique:' .. unique, task)
    else call('SET', NS .. 'unique:' .. unique, task, 'PX', f[7]) end
  end
  if gate ~= '' then park(gate, queue, step, f[4], raw)
  elseif due and due > NOW and not only_celery() then delay(queue, step, due, raw)
  elseif continues then push('LPUSH', list_key(queue, step), raw)
  else
    local done = redis.pcall('LPUSH', list_key(queue, step), raw)
    if type(done) == 'table' and done.err then
      -- What was not queued must not count as a repeat the next time.
      if seen ~= '' then call('DEL', NS .. 'seen:' .. seen) end
      if unique ~= '' then call('DEL', NS .. 'unique:' .. unique) end
      return nil, done
    end
  end
end
