-- What a sidecar has counted since its last write, for the bill of its fleet: differences, which are added to the sums of
-- all sidecars; and what it claims of the budgets that the fleet shares. A write is done only if it follows the one that is
-- stored, so one that comes late or twice changes nothing.
--
-- KEYS  1 when each sidecar wrote last, in milliseconds of this server's clock   2 their records
--       3 when each that shares budgets wrote last   4 … quarters of an hour, seconds, and budgets in their period
-- ARGV  1 the sidecar   2 the number of the write that it takes to be stored; 0: none
--       3 its record, "number the-rest"   4 since when it knows of a loss, or empty
--       5 milliseconds since the write that was answered last, or empty   6 how many sidecars shared budgets then
--       7 calls per second that all of them may make   8 how many rows follow   9 how many seconds follow them
--       10 1 if no calls follow   then rows: place of the quarter among KEYS, series, billable, uncertain, peak
--       seconds: its place, that of its quarter, series, billable
--       claims: place of the budget, its messages, what the sidecar knows to be granted, counted without a grant, given back,
--       wanted, milliseconds of life
-- Returns { the number of the write that is stored now, this server's time in milliseconds, how many sidecars share budgets,
-- for each claim what is granted and what all sidecars have }

local KEEP, KEEP_SECOND, MOST, CHUNK = 100 * 24 * 3600000, 300000, 10000, 100
-- Fields of a quarter, three a series. Further topics and callers are counted as others.
local MOST_FIELDS = 3000
-- Sidecars that notice the same loss do so within this time.
local SAME_LOSS, MOST_LOSSES = 60000, 100
-- Among the records: when the first one was written, and between which times this server has lost something, the latest
-- first. No sidecar has these names.
local SINCE, LOSSES = 'since', 'losses'
-- Which server it is: one that starts has a new run_id, and one that becomes primary a new master_replid. Either may lack
-- the last writes.
local SERVER = 'server'
-- After a loss nothing is granted for so long: each sidecar says what it knows. "until known reported": until when, how many
-- sidecars wrote before the loss, and how many that ran before have said what they know.
local RECALL, RECALL_TIME = 'recall', 10000
-- A sidecar that shares budgets writes every second.
local MEMBER = 3000

local seen, records, sharing, id = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local stored, recalled = string.match(redis.call('HGET', records, id) or '', '^(%d+) (%d+) ')
stored = stored or '0'
local number = string.match(ARGV[3], '^(%d+) ')
local rows, seconds = tonumber(ARGV[8]), tonumber(ARGV[9])
local first_claim = 11 + 5 * rows + 4 * seconds

local function members()
  redis.call('ZREMRANGEBYSCORE', sharing, '-inf', string.format('%.0f', now - MEMBER))
  return redis.call('ZCARD', sharing)
end
local function answer(grants) return { number, now, string.format('%.0f', members()), grants } end

-- This write was done, and its answer lost.
if stored == number then
  local grants = {}
  for at = first_claim, #ARGV, 7 do
    local budget = KEYS[tonumber(ARGV[at])]
    local by, grant = string.match(redis.call('HGET', budget, id) or '', '^(%d+) (%d+)$')
    grants[#grants + 1] = by == number and grant or '0'
    grants[#grants + 1] = redis.call('HGET', budget, 'total') or '0'
  end
  return answer(grants)
end
if ARGV[2] ~= stored then return { stored, now, '0', {} } end

local is_new = not redis.call('HGET', records, SINCE)
-- What may be forgotten of the budgets: all of it, what another server had, or one of them.
local is_doubtful, server = is_new or ARGV[4] ~= '', nil
if first_claim <= #ARGV then
  local info = redis.call('INFO', 'server', 'replication')
  server = string.match(info, 'run_id:(%w+)') .. ':' .. (string.match(info, 'master_replid:(%w+)') or '')
  is_doubtful = is_doubtful or (redis.call('HGET', records, SERVER) or server) ~= server
  for at = first_claim, #ARGV, 7 do
    local knows = ARGV[5] ~= '' and tonumber(ARGV[at + 2]) > 0
    if knows and not redis.call('HGET', KEYS[tonumber(ARGV[at])], 'total') then is_doubtful = true end
  end
end
local ends, known, reported = string.match(redis.call('HGET', records, RECALL) or '', '^(%d+) (%d+) (%d+)$')
ends, known, reported = tonumber(ends or '0'), tonumber(known or '0'), tonumber(reported or '0')
if is_doubtful then
  if ends <= tonumber(now) then ends, known, reported = now + RECALL_TIME, 0, 0 end
  known = math.max(known, tonumber(ARGV[6]))
end
local is_recalling = ends > tonumber(now)
-- Each that shares budgets is counted once, with its first write of the recall; those that begin only now know nothing.
if is_recalling and tonumber(recalled or '0') ~= ends and ARGV[5] ~= '' and first_claim <= #ARGV then
  known, reported = math.max(known, tonumber(ARGV[6])), reported + 1
end
recalled = string.format('%.0f', is_recalling and ends or 0)

-- The first write of this step: Redis refuses it, or none of them.
redis.call('HSET', records, id, number .. ' ' .. recalled .. string.sub(ARGV[3], #number + 1))
if is_recalling then redis.call('HSET', records, RECALL, string.format('%.0f %.0f %.0f', ends, known, reported)) end
redis.call('ZADD', seen, now, id)
if server then redis.call('HSET', records, SERVER, server) end
if server and ARGV[10] ~= '1' then redis.call('ZADD', sharing, now, id) else redis.call('ZREM', sharing, id) end
if is_new then redis.call('HSET', records, SINCE, now) end

local function others(text)
  local instance, topic, caller = string.match(text, '^([^\n]*)\n([^\n]*)(.*)$')
  if not instance then return text end
  if topic ~= '' then topic = 'other' end
  if caller ~= '' and caller ~= '\n*' then caller = '\nother' end
  return instance .. '\n' .. topic .. caller
end

local full = {}
local function field(quarter, what, text)
  if full[quarter] == nil then full[quarter] = redis.call('HLEN', quarter) >= MOST_FIELDS end
  if full[quarter] and not redis.call('HGET', quarter, what .. text) then text = others(text) end
  return what .. text
end

-- Numbers are exact up to 2^53. What is none was written by another program, and is replaced.
local function change(key, name, to)
  local sum = to(tonumber(redis.call('HGET', key, name) or '0') or 0)
  redis.call('HSET', key, name, string.format('%.0f', sum))
  return sum
end

local function add(key, name, n) return change(key, name, function(sum) return sum + n end) end

local function peak(quarter, text, n)
  change(quarter, field(quarter, 'p', text), function(most) return math.max(most, n) end)
end

local touched, at = {}, 11
for _ = 1, rows do
  local quarter, text = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
  for n, what in ipairs({ 'b', 'u' }) do
    local more = tonumber(ARGV[at + 1 + n])
    if more > 0 then add(quarter, field(quarter, what, text), more) end
  end
  local most = tonumber(ARGV[at + 4])
  if most > 0 then peak(quarter, text, most) end
  touched[quarter] = KEEP
  at = at + 5
end
for _ = 1, seconds do
  local second, quarter, text = KEYS[tonumber(ARGV[at])], KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2]
  peak(quarter, text, add(second, text, tonumber(ARGV[at + 3])))
  touched[second], touched[quarter] = KEEP_SECOND, KEEP
  at = at + 4
end
for key, life in pairs(touched) do redis.call('PEXPIRE', key, life) end

-- Budgets. A sidecar that has not reported is gone; it has made no more calls since the last answer of another than all may.
local grants = {}
for at = first_claim, #ARGV, 7 do
  local budget = KEYS[tonumber(ARGV[at])]
  local limit, own, counted = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local back, want = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5])
  local total = tonumber(redis.call('HGET', budget, 'total') or '') or 0
  -- The most that all can have had, by the recall that ends then.
  local of, most = string.match(redis.call('HGET', budget, 'most') or '', '^(%d+) (%d+)$')
  of, most = tonumber(of or '0'), tonumber(most or '')
  -- A first claim has what the sidecar's ledger knows.
  if is_recalling or ARGV[2] == '0' then total = math.max(total, own) end
  if is_recalling then
    if ARGV[5] ~= '' then
      local bound = own + math.ceil(tonumber(ARGV[7]) * (ARGV[5] + 1000) / 1000)
      if of ~= ends or not most or bound < most then
        redis.call('HSET', budget, 'most', string.format('%.0f %.0f', ends, bound))
      end
    end
  elseif most then
    if of == ends and reported < known then total = math.max(total, math.min(most, limit)) end
    redis.call('HDEL', budget, 'most')
  end
  total = math.max(0, total - back + counted)
  local grant = 0
  if want > 0 and not is_recalling and total < limit then
    -- Towards the end all have a share of what is left.
    grant = math.max(1, math.min(want, math.floor((limit - total) / (2 * math.max(1, members())))))
  end
  total = string.format('%.0f', total + grant)
  grant = string.format('%.0f', grant)
  redis.call('HSET', budget, 'total', total)
  if grant == '0' then redis.call('HDEL', budget, id) else redis.call('HSET', budget, id, number .. ' ' .. grant) end
  redis.call('PEXPIRE', budget, ARGV[at + 6])
  grants[#grants + 1] = grant
  grants[#grants + 1] = total
end

if ARGV[4] ~= '' then
  local all = {}
  for from, to in string.gmatch(redis.call('HGET', records, LOSSES) or '', '(%d+) (%d+)') do
    if #all < MOST_LOSSES then all[#all + 1] = { from, to } end
  end
  local last = all[1]
  if last and now - last[2] < SAME_LOSS then
    if tonumber(ARGV[4]) < tonumber(last[1]) then last[1] = ARGV[4] end
    last[2] = now
  else
    table.insert(all, 1, { ARGV[4], now })
  end
  for n, loss in ipairs(all) do all[n] = loss[1] .. ' ' .. loss[2] end
  redis.call('HSET', records, LOSSES, table.concat(all, ','))
end

-- A record is kept for a hundred days after its last write. Of too many the first are forgotten, and the bill is complete
-- from the last that had not ended in order.
local gone = redis.call('ZRANGE', seen, '-inf', string.format('%.0f', now - KEEP), 'BYSCORE', 'LIMIT', 0, CHUNK)
local many = redis.call('ZCARD', seen) - MOST
if many > 0 then
  local first = redis.call('ZRANGE', seen, 0, math.min(many, CHUNK) - 1, 'WITHSCORES')
  for n = 1, #first, 2 do
    gone[#gone + 1] = first[n]
    local has_ended = string.find(redis.call('HGET', records, first[n]) or '', '"ended":true', 1, true)
    local since = tonumber(redis.call('HGET', records, SINCE) or '0') or 0
    if not has_ended and tonumber(first[n + 1]) > since then redis.call('HSET', records, SINCE, first[n + 1]) end
  end
end
for _, other in ipairs(gone) do
  redis.call('ZREM', seen, other)
  redis.call('HDEL', records, other)
end
for k = 1, 3 do redis.call('PEXPIRE', KEYS[k], KEEP) end
return answer(grants)
