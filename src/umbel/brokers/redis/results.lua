-- Results and chord parts, in Celery's keys and forms. They may live in another database of this server.
--
-- celery-task-meta-<id>              the encoded meta; also published on the channel of that name
-- celery-task-meta-<id>.state        its state, only where that cannot be read from the meta
-- celery-taskset-meta-<gid> .s .t    members of the chord, and members added later
--                           .j       zset of encoded parts by index     .d  set of task id:index that are counted
--                           .c       the claim of who publishes the body: a token, then 'done'
local CLAIM_SECONDS = 60
local DONE_SECONDS = 300

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

-- Count one part. Returns the claim token if all are in and the body is this part's to publish.
local function add_part(base, index, task, payload, seconds)
  local claim = call('GET', base .. '.c')
  if claim == 'done' then return nil end
  local token = task .. ':' .. index
  -- The sorted set is asked too: Celery before 5.7 keeps no .d.
  if call('SISMEMBER', base .. '.d', token) == 0
    and (index == '+inf' or call('ZCOUNT', base .. '.j', index, index) == 0) then
    call('ZADD', base .. '.j', index, payload)
    call('SADD', base .. '.d', token)
    if seconds ~= '' then
      for _, suffix in ipairs({'.j', '.d', '.s', '.t'}) do call('EXPIRE', base .. suffix, seconds) end
    end
  end
  local size = call('GET', base .. '.s')
  if not size then return nil end
  if call('ZCARD', base .. '.j') < tonumber(size) + tonumber(call('GET', base .. '.t') or 0) then return nil end
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
  return 1
end
