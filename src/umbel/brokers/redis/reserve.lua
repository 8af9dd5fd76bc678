-- Taking messages into the in-flight set: ends first, then the queues in turn, each by priority.
--
-- KEYS[1]  w:<id>      KEYS[2]  inf:<id>
-- KEYS[3]  due         then for each queue: ends:<queue>, and one of Celery's lists for each step, in order
-- `names`  the queues; `steps` the steps; `start` the position of the queue whose turn it is
--
-- Returns {'ok', ms until the next delayed message or -1, first fence, runs, messages, specials}, or {'gone'}.
-- runs = {position of the queue, number of messages, ...}. Fences count up from the first.
-- specials = {position of the message, deliveries, verdict, detail, ...} where there is something to say.
local BATCH_BYTES = 1048576
local MOVE_LIMIT = 64

-- Move what is due into its queue. Returns how many ms the next one has to wait, or -1.
local function move_due()
  local moved = 0
  while true do
    local head = call('ZRANGE', NS .. 'due', 0, 0, 'WITHSCORES')
    if not head[1] then return -1 end
    local wait = tonumber(head[2]) - NOW
    if wait > 0 then return math.ceil(wait) end
    if moved >= MOVE_LIMIT then return 0 end
    local queue, key = head[1], NS .. 'delayed:' .. head[1]
    -- A few at a time: they may be large.
    local items = call('ZRANGEBYSCORE', key, '-inf', digits(NOW), 'LIMIT', 0, 8)
    for i = 1, #items do
      local f = split(items[i], 2)
      push('LPUSH', list_key(queue, f[2]), f[3])
    end
    if #items > 0 then call('ZREMRANGEBYRANK', key, 0, #items - 1) end
    moved = moved + #items
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[1] then call('ZADD', NS .. 'due', first[2], queue) else call('ZREM', NS .. 'due', queue) end
  end
end

local function reserve(limit, start, names, steps)
  if call('HGET', KEYS[1], 'state') ~= 'live' then return {'gone'} end
  local wait = move_due()
  local counted = call('EXISTS', NS .. 'dc') == 1
  local ms, per_queue = digits(NOW), #steps + 1
  local runs, raws, specials, values = {}, {}, {}, {}
  local bytes, full = 0, false

  local function add(queue, head, raw, count, kind, detail)
    local n = #raws + 1
    raws[n] = raw
    bytes = bytes + #raw
    values[n] = head .. count .. NUL .. NUL .. kind .. NUL .. detail .. NUL .. raw
    if count ~= 1 or kind ~= '' then
      local s = #specials
      specials[s + 1], specials[s + 2], specials[s + 3], specials[s + 4] = n - 1, count, kind, detail
    end
    if runs[#runs - 1] == queue then runs[#runs] = runs[#runs] + 1
    else
      runs[#runs + 1] = queue
      runs[#runs + 1] = 1
    end
  end

  local function fits(raw) return bytes == 0 or bytes + #raw <= BATCH_BYTES end

  local function take_ends(queue)
    local key = KEYS[3 + queue * per_queue + 1]
    while #raws < limit and not full do
      local value = call('RPOP', key)
      if not value then return end
      local f = split(value, 4)
      if not fits(f[5]) then
        full = true
        call('RPUSH', key, value)
        return
      end
      add(queue, names[queue + 1] .. NUL .. f[1] .. NUL .. ms .. NUL, f[5], tonumber(f[2]), f[3], f[4])
    end
  end

  local function take_list(queue, step, quota)
    local key = KEYS[3 + queue * per_queue + 1 + step]
    local head = names[queue + 1] .. NUL .. steps[step] .. NUL .. ms .. NUL
    while quota > 0 and not full do
      -- How many will fit is guessed from those taken so far; the first guess is small, they may be large.
      local chunk = 4
      if #raws > 0 then chunk = math.floor((BATCH_BYTES - bytes) * #raws / (bytes + 1)) + 1 end
      -- What was taken from other queues must not be lost over an error; a key that holds no list is an empty queue.
      local got = redis.pcall('RPOP', key, math.min(quota, chunk, 256))
      if got and got.err then
        if #raws == 0 and not find(got.err, 'WRONGTYPE', 1, true) then return call('RPOP', key, 1) end
        return quota
      end
      if not got then return quota end
      for i = 1, #got do
        local raw = got[i]
        if not fits(raw) then
          full = true
          for back = #got, i, -1 do call('RPUSH', key, got[back]) end
          return 0
        end
        add(queue, head, raw, counted and (tonumber(call('HGET', NS .. 'dc', redis.sha1hex(raw)) or 0) + 1) or 1, '', '')
        quota = quota - 1
      end
    end
    return quota
  end

  local queues = #names
  for turn = 0, queues - 1 do take_ends((start + turn) % queues) end
  -- Each queue its share, then whoever has more.
  for _, quota in ipairs({math.ceil((limit - #raws) / queues), limit}) do
    for turn = 0, queues - 1 do
      local left = math.min(quota, limit - #raws)
      for step = 1, #steps do
        if left <= 0 or full then break end
        left = take_list((start + turn) % queues, step, left)
      end
    end
    if queues == 1 or #raws == 0 then break end
  end

  if #raws == 0 then
    -- A read, so that client tracking tells this connection when one of them changes.
    call('EXISTS', unpack(KEYS, 4))
    return {'ok', wait, 0, runs, raws, specials}
  end
  -- Close to the time in microseconds, so that it grows on although the server may come back with older data.
  local first = math.max(tonumber(call('GET', NS .. 'fence') or 0), NOW_US) + 1
  call('SET', NS .. 'fence', digits(first + #raws - 1))
  local fields = {}
  for i = 1, #raws do
    fields[#fields + 1] = digits(first + i - 1)
    fields[#fields + 1] = values[i]
    if #fields >= 1000 then
      call('HSET', KEYS[2], unpack(fields))
      fields = {}
    end
  end
  if #fields > 0 then call('HSET', KEYS[2], unpack(fields)) end
  return {'ok', wait, first, runs, raws, specials}
end

-- Read `start`, the queues and the steps from ARGV, from position `at`.
local function reserve_as_told(limit, at)
  local names, steps = {}, {}
  local queues = tonumber(ARGV[at + 1])
  for i = 1, queues do names[i] = ARGV[at + 1 + i] end
  at = at + 2 + queues
  for i = 1, tonumber(ARGV[at]) do steps[i] = ARGV[at + i] end
  return reserve(limit, tonumber(ARGV[at - 2 - queues]), names, steps), at + #steps + 1
end
