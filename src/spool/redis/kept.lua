-- What an account keeps, in Redis. Each call is one step: Redis runs nothing else meanwhile.
--
-- KEYS: stream, words, receipts, totals, owners, spare; all with the account as their hash tag.
--   stream    an entry a message: id, and the body as long as it is to be delivered. The consumer that
--             has the entry pending in the group GROUP is the message's owner, and no other.
--   words     message -> "<entry> <bytes> <all that is known of it, as JSON>"
--   receipts  messages that were delivered or dropped, by the moment
--   spare     the same, by the moment from which they may give way to new messages. Older sidecars know
--             nothing of it: what they write is added here by newer ones, what they remove stays a while
--   totals    messages and bytes of the account, how many of these bytes are receipts, and the moment up
--             to which the receipts are known to be in spare
--   owners    owner -> its epoch, or GONE
-- ARGV: verb, owner, epoch, what the verb needs.
--
-- An epoch is the number of a call of an owner. The owner names the last one that it knows was done,
-- so that a call that comes late, or from before Redis lost what it knew, changes nothing.
local S, W, R, T, O, P = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local GROUP, GONE = 'tollgate', '-'
local verb, me, epoch = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function known(id)
  local words = redis.call('HGET', W, id)
  if words then return string.match(words, '^(%S+) (%S+) (.*)$') end
end

local function is_mine(entry)
  return #redis.call('XPENDING', S, GROUP, entry, entry, 1, me) > 0
end

local function add(id, bytes, words, body)
  local entry
  if body then
    entry = redis.call('XADD', S, '0-*', 'id', id, 'body', body)
  else
    entry = redis.call('XADD', S, '0-*', 'id', id)
  end
  redis.call('XCLAIM', S, GROUP, me, 0, entry, 'FORCE', 'JUSTID', 'LASTID', entry)
  redis.call('HSET', W, id, entry .. ' ' .. bytes .. ' ' .. words)
end

local function remove(id, entry, bytes)
  redis.call('XACK', S, GROUP, entry)
  redis.call('XDEL', S, entry)
  redis.call('HDEL', W, id)
  if redis.call('ZREM', R, id) == 1 then redis.call('HINCRBY', T, 'receipts', -bytes) end
  redis.call('ZREM', P, id)
  redis.call('HINCRBY', T, 'messages', -1)
  redis.call('HINCRBY', T, 'bytes', -bytes)
end

local function remove_receipts(ids)
  for _, id in ipairs(ids) do
    local entry, bytes = known(id)
    if entry then
      remove(id, entry, bytes)
    else
      redis.call('ZREM', R, id)
      redis.call('ZREM', P, id)
    end
  end
end

local function total(of)
  return tonumber(redis.call('HGET', T, of) or 0)
end

-- From when the receipt of a message that ended at this moment may give way.
local function spare_from(words, at, keep_claims)
  -- A quote within a text is escaped: this is the field and nothing else.
  return string.find(words, '"claim":{', 1, true) and at + keep_claims or at
end

-- Adds a page of the receipts to spare that older sidecars have written, the oldest first. Returns
-- whether there may be more. This millisecond is looked at again: it may bring more of them.
local function complete_spare(now, keep_claims)
  local from = total('spared')
  -- A clock that was ahead; or nothing is known of any.
  if from >= now or redis.call('ZCARD', P) == 0 then from = 0 end
  local page = redis.call('ZRANGEBYSCORE', R, '(' .. from, now, 'WITHSCORES', 'LIMIT', 0, 200)
  if #page == 0 then return false end
  local to = page[#page]
  local same = redis.call('ZRANGEBYSCORE', R, to, to, 'WITHSCORES')
  for _, some in ipairs({ page, same }) do
    for i = 1, #some, 2 do
      local id, at = some[i], tonumber(some[i + 1])
      local _, _, words = known(id)
      if words then redis.call('ZADD', P, 'NX', spare_from(words, at, keep_claims), id) end
    end
  end
  redis.call('HSET', T, 'spared', math.min(tonumber(to), now - 1))
  return true
end

-- The messages of pending entries: id, bytes, words. An entry that is not its message's own is nothing.
local function messages(pending)
  local out = {}
  for _, one in ipairs(pending) do
    local entry = redis.call('XRANGE', S, one[1], one[1])[1]
    local id = entry and entry[2][2]
    local own, bytes, words = known(id or '')
    if own == one[1] then
      out[#out + 1] = id
      out[#out + 1] = bytes
      out[#out + 1] = words
    else
      redis.call('XACK', S, GROUP, one[1])
    end
  end
  return out
end

if verb == 'read' then
  local out = {}
  for i = 4, #ARGV do
    local entry = known(ARGV[i])
    entry = entry and redis.call('XRANGE', S, entry, entry)[1]
    out[#out + 1] = entry and entry[2][4] or false
  end
  return out
end

if verb == 'look' then
  local out = {}
  for i = 4, #ARGV do out[#out + 1] = redis.call('HEXISTS', W, ARGV[i]) end
  return out
end

if verb == 'all' then
  local found = redis.call('XRANGE', S, '(' .. ARGV[4], '+', 'COUNT', ARGV[5])
  local out = { #found > 0 and found[#found][1] or '' }
  for _, one in ipairs(found) do
    local _, bytes, words = known(one[2][2])
    if words then
      out[#out + 1] = one[2][2]
      out[#out + 1] = bytes
      out[#out + 1] = words
    end
  end
  return out
end

-- A page of what another owner has, from an entry on.
if verb == 'peek' then
  local other, from, count = ARGV[4], ARGV[5], tonumber(ARGV[6])
  local pending = redis.call('XPENDING', S, GROUP, '(' .. from, '+', count, other)
  local out = messages(pending)
  table.insert(out, 1, #pending == count and pending[count][1] or '')
  return out
end

if verb == 'hello' then
  redis.pcall('XGROUP', 'CREATE', S, GROUP, '0', 'MKSTREAM')
  local now = tonumber(redis.call('HGET', O, me))
  redis.call('HSET', O, me, epoch + 2)
  -- The last call may have been done without an answer.
  if now == epoch then return 'undone' end
  return now == epoch + 1 and 'done' or 'unknown'
end

if tonumber(redis.call('HGET', O, me)) ~= epoch then
  return redis.error_reply('STALE not the epoch of this owner')
end
redis.call('HSET', O, me, epoch + 1)

if verb == 'commit' then
  local keep, most, most_bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
  local keep_claims = tonumber(ARGV[7])
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  remove_receipts(redis.call('ZRANGEBYSCORE', R, '-inf', now - keep, 'LIMIT', 0, 200))
  -- What an older sidecar has removed.
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P, '-inf', now - keep - keep_claims, 'LIMIT', 0, 200)) do
    if not known(id) then redis.call('ZREM', P, id) end
  end
  -- No call has more pages to read than these.
  local pages = 10
  complete_spare(now, keep_claims)
  local fates = {}
  for i = 8, #ARGV, 5 do
    local op, id, bytes, words, body = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
    local fate = 'done'
    local entry, old = known(id)
    if op == 'keep' then
      local over = function()
        return total('messages') + 1 > most or total('bytes') + bytes > most_bytes
      end
      while over() do
        local spare = redis.call('ZRANGEBYSCORE', P, '-inf', now, 'LIMIT', 0, 1)
        if #spare > 0 then
          remove_receipts(spare)
        elseif pages > 0 and complete_spare(now, keep_claims) then
          pages = pages - 1
        else
          break
        end
      end
      if entry then
        fate = 'lost'
      elseif over() then
        fate = 'full'
      else
        add(id, bytes, words, body)
        redis.call('HINCRBY', T, 'messages', 1)
        redis.call('HINCRBY', T, 'bytes', bytes)
      end
    elseif not entry or not is_mine(entry) then
      fate = 'lost'
    elseif op == 'forget' then
      remove(id, entry, old)
    elseif op == 'receipt' then
      redis.call('XACK', S, GROUP, entry)
      redis.call('XDEL', S, entry)
      add(id, bytes, words)
      redis.call('HINCRBY', T, 'bytes', bytes - old)
      local more = redis.call('ZADD', R, now, id) == 1 and bytes or bytes - old
      redis.call('HINCRBY', T, 'receipts', more)
      redis.call('ZADD', P, spare_from(words, now, keep_claims), id)
    else
      redis.call('HSET', W, id, entry .. ' ' .. old .. ' ' .. words)
    end
    fates[#fates + 1] = fate
  end
  return fates
end

if verb == 'watch' then
  local pending = {}
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', S, GROUP)) do
    local of = {}
    for i = 1, #consumer, 2 do of[consumer[i]] = consumer[i + 1] end
    pending[of.name] = of.pending
  end
  local out = { total('messages') - redis.call('ZCARD', R), total('bytes') - total('receipts') }
  local owners = redis.call('HGETALL', O)
  for i = 1, #owners, 2 do
    if owners[i] ~= me then
      out[#out + 1] = { owners[i], owners[i + 1], pending[owners[i]] or 0 }
    end
    pending[owners[i]] = nil
  end
  for name, n in pairs(pending) do
    if n > 0 then out[#out + 1] = { name, '', n } end
  end
  return out
end

if verb == 'mine' then
  local pending = redis.call('XPENDING', S, GROUP, '(' .. ARGV[4], '+', ARGV[5], me)
  local out = messages(pending)
  table.insert(out, 1, #pending > 0 and pending[#pending][1] or '')
  return out
end

-- Takes what another owner has of these messages, if their words are still these.
if verb == 'take' then
  local other, seen = ARGV[4], ARGV[5]
  local now = redis.call('HGET', O, other) or ''
  if now ~= seen and now ~= GONE and seen ~= '*' then return { 'alive' } end
  -- Should it live after all, it learns so from its next call.
  redis.call('HSET', O, other, GONE)
  local out = { 'left' }
  for i = 6, #ARGV, 2 do
    local entry, _, words = known(ARGV[i])
    if words == ARGV[i + 1] and #redis.call('XPENDING', S, GROUP, entry, entry, 1, other) > 0 then
      redis.call('XCLAIM', S, GROUP, me, 0, entry, 'JUSTID')
      out[#out + 1] = ARGV[i]
    end
  end
  if #redis.call('XPENDING', S, GROUP, '-', '+', 1, other) == 0 then
    out[1] = 'none'
    redis.call('HDEL', O, other)
    redis.call('XGROUP', 'DELCONSUMER', S, GROUP, other)
  end
  return out
end

if verb == 'leave' then
  if #redis.call('XPENDING', S, GROUP, '-', '+', 1, me) > 0 then
    redis.call('HSET', O, me, GONE)
  else
    redis.call('HDEL', O, me)
    redis.call('XGROUP', 'DELCONSUMER', S, GROUP, me)
  end
  return 1
end

return redis.error_reply('ERR no such verb')
