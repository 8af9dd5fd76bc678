-- Results and chord parts, in Celery's keys and forms. They may live in another database of this server.
--
-- celery-task-meta-<id>              the encoded meta; also published on the channel of that name
-- celery-task-meta-<id>.state        its state, only where that cannot be read from the meta
-- celery-taskset-meta-<gid> .s .t    members of the chord, and members added later
--                           .j       zset of encoded parts by index     .d  set of task id:index that are counted
--                                    (a list in their order of coming where result_chord_ordered is False)
--                           .c       the claim of who publishes the body: a token, then 'done'
--                           .b       what an audit has to know to complete it: see umbel.worker.audit
-- umbel:chords                       zset of such base keys -> the second at which an audit looks at it
local CLAIM_SECONDS = 300
local DONE_SECONDS = 300
local LOOK_SECONDS = 30

-- The state of a meta in JSON; nil for what other serializers and compression make.
local function state_of(meta)
  local state = string.match(meta, '^{"status": ?"([^"]*)"')
  if state or sub(meta, 1, 1) ~= '{' then return state end
  local ok, decoded = pcall(cjson.decode, meta)
  return ok and type(decoded) == 'table' and type(decoded.status) == 'string' and decoded.status or nil
end

local function set(key, value, ms)
  if ms == '' then return call('SET', key, value) end
  return call('SET', key, value, 'PX', ms)
end

local function set_new(key, value, ms)
  if ms == '' then return call('SET', key, value, 'NX') end
  return call('SET', key, value, 'NX', 'PX', ms)
end

-- SUCCESS stays for ever, and a final state gives way to final ones only.
local FINAL = {SUCCESS = true, FAILURE = true, REVOKED = true}
local function put_result(key, state, ms, payload)
  -- Most tasks have no record yet: one command, and no look at what is there.
  if not set_new(key, payload, ms) then
    local old = call('GET', key)
    local was = old and (state_of(old) or call('GET', key .. '.state'))
    if was == 'SUCCESS' or (FINAL[was] and not FINAL[state]) then return 0 end
    set(key, payload, ms)
  end
  if find(payload, '{"status": "' .. state .. '"', 1, true) ~= 1 and state_of(payload) ~= state then
    set(key .. '.state', state, ms)
  end
  call('PUBLISH', key, payload)
  return 1
end

-- Whether the sorted set has a part of this task: Celery before 5.7 counts there and nowhere else.
local function has_part(base, index, task)
  local parts = base .. '.j'
  -- Those without an index lie in one place, and are looked through only where one of them was not counted by us.
  if index == '+inf' and call('SCARD', base .. '.d') >= call('ZCARD', parts) then return false end
  for _, part in ipairs(call('ZRANGEBYSCORE', parts, index, index)) do
    if find(part, '"' .. task .. '"', 1, true) then return true end
  end
  return false
end

-- The index of chords that are open and have a note, which lies beside them.
local function chords_of(base) return sub(base, 1, find(base, 'celery-taskset-meta-', 1, true) - 1) .. 'umbel:chords' end

-- Whether all parts are in; nil where nobody has said yet how many there are.
local function is_full(base, is_list)
  local size = call('GET', base .. '.s')
  if not size then return nil end
  return call(is_list and 'LLEN' or 'ZCARD', base .. '.j') >= tonumber(size) + tonumber(call('GET', base .. '.t') or 0)
end

-- Keep what an audit has to know, once for each chord.
local function keep_note(base, note, seconds)
  local kept = seconds == '' and call('SET', base .. '.b', note, 'NX')
    or seconds ~= '' and call('SET', base .. '.b', note, 'NX', 'EX', seconds)
  if kept then call('ZADD', chords_of(base), math.floor(NOW / 1000) + LOOK_SECONDS, base) end
end

-- Count one part. Returns the claim token if all are in and the body is this part's to publish.
local function add_part(base, index, task, payload, seconds, as, note)
  local claim = call('GET', base .. '.c')
  if claim == 'done' then return nil end
  local token = task .. ':' .. index
  -- Whoever counted first, one of Celery's workers perhaps, has decided what it is.
  local kind = call('TYPE', base .. '.j').ok
  local is_list = kind == 'list' or (kind == 'none' and as == 'list')
  if call('SISMEMBER', base .. '.d', token) == 0 and (is_list or not has_part(base, index, task)) then
    if is_list then call('RPUSH', base .. '.j', payload) else call('ZADD', base .. '.j', index, payload) end
    call('SADD', base .. '.d', token)
    if seconds ~= '' then
      for _, suffix in ipairs({'.j', '.d', '.s', '.t'}) do call('EXPIRE', base .. suffix, seconds) end
    end
  end
  if note ~= '' then keep_note(base, note, seconds) end
  if not is_full(base, is_list) then return nil end
  if claim and claim ~= token then return nil end
  call('SET', base .. '.c', token, 'EX', CLAIM_SECONDS)
  return token
end

-- The body is published: forget the parts, and that a late one counts again.
local function close_chord(base, token)
  local claim = call('GET', base .. '.c')
  if claim and claim ~= token then return 0 end
  call('DEL', base .. '.j', base .. '.t', base .. '.s', base .. '.d')
  call('SET', base .. '.c', 'done', 'EX', DONE_SECONDS)
  if call('DEL', base .. '.b') == 1 then call('ZREM', chords_of(base), base) end
  return 1
end
