-- The ceilings of a fleet. One ceiling of N calls a second is N permits in a sorted set. A permit's
-- score is the moment, in microseconds of this server's clock, from which it may carry its next
-- call. While it is out, that is "hold" after the last call on it may begin: by then that call has
-- cooled, also if it had no answer and the provider stood still. So a score is window, lease,
-- recovery and queue in one number, and a holder that dies costs nothing but time.
--
-- A holder that lives gives a permit back. For the others the sorted set "out" has the moment until
-- which a call may begin on a permit: once a call is answered that was sent later, the provider has
-- read that one, and the permit comes back sooner (src/ceiling/unanswered.rs).
--
-- The provider counts an account's calls by region, and a sidecar that knows its region shares that
-- region's ceiling. One that knows none, such as one of an older version, shares the ceiling of all
-- regions. Neither of the two knows the permits of the other, so only one is in use: that of all regions,
-- until a week after the last sidecar without a region. A change either way is to every sidecar what a
-- new server is: the ceiling begins with a warm-up, and by its end no lease of the other is left.
--
-- KEYS  four a ceiling, the account's first: permits, state, parked, out; then, from a sidecar that knows
--       its region, the four of the account's ceiling of all regions; all with one hash tag
-- ARGV  1 the figures, "1000,300"   2 how many permits are wanted   3 how many of those are long-lived
--       4 whether the provider pushed back, 0 or 1
--       5 when the latest call that was answered had been sent, at the earliest; 0: none was
--       6 cycle: how long before its lease's end a permit begins no more calls
--       7 min: how long a call without an answer counts at least   8 hold: at most, and it has cooled
--       9 … given back: "ids:nonce:free_in", an id a ceiling, the score as it was given, and in how
--       many microseconds the permit has cooled; "hold": its call ended without an answer
-- Returns now, how long the warm-up lasts, contended (0 or 1), ask_in, figures, withheld permits, those
-- of them still at work (the debt), whether the account's ceiling is that of all regions (0 or 1),
-- { "ids:nonce:ready_in" … }

-- No lease is longer than LONG, so that LONG after anything was forgotten every permit is home.
local LEASE, LONG = 10000000, 30000000
-- How far ahead a permit may be promised, and how far apart those of one answer may be.
local HORIZON, SPREAD = 500000, 50000
-- How much pacing may lag behind: more is a burst.
local LAG = 30000
-- Permits that are made, removed or withheld in one call: what a call costs is bounded.
local CHUNK = 1000
-- A withheld permit rests PARK on average, and a tenth is withheld once in PARK_EVERY at most.
local PARK, PARK_EVERY = 30000000, 1000000
-- How far the clocks of two servers may be apart, of which one takes over from the other.
local SKEW = 1000000
-- For so long after a sidecar got less than it wanted of a ceiling, all that share it are contended.
local SHORT = 1000000
-- No sidecar has to wait longer than this before it asks again.
local LATEST = 2000000
-- A ceiling that no sidecar asks for is forgotten, as in members.lua, in milliseconds.
local FORGET = 7 * 24 * 3600000
-- A provider that answers has read within SETTLE what came before; then that cools.
local SETTLE, WINDOW = 1000000, 1001000

local function int(x) return string.format('%.0f', x) end
-- The end of the warm-up is odd, and that of no lease is.
local function odd(x) return x - x % 2 + 1 end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- A server that starts has a new run_id. One that becomes primary has a new master_replid: also one that
-- was primary before, and whose successor served no request.
local info = redis.call('INFO', 'server', 'replication')
local run = string.match(info, 'run_id:(%w+)') .. ':' .. (string.match(info, 'master_replid:(%w+)') or '')
local want, core = tonumber(ARGV[2]), tonumber(ARGV[3])
local answered = tonumber(ARGV[5])
local cycle, min, hold = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function keys(k)
  return { permits = KEYS[4 * k + 1], state = KEYS[4 * k + 2], parked = KEYS[4 * k + 3], out = KEYS[4 * k + 4] }
end
local figures, ceilings = {}, {}
for figure in string.gmatch(ARGV[1], '%d+') do figures[#figures + 1] = tonumber(figure) end

-- The ceiling of all regions is in use while it is whole and of this server. Only a sidecar without a
-- region makes it, and keeps it from being forgotten: one that made it and died at once has not said when
-- that is. While it is in use, that of the region is void.
local wide = #KEYS > 4 * #figures and keys(#figures)
if wide then
  local h = redis.call('HMGET', wide.state, 'run', 'size')
  if h[1] == run and redis.call('ZCARD', wide.permits) == tonumber(h[2]) then
    redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
    redis.call('PEXPIRE', wide.state, FORGET, 'NX')
    redis.call('PEXPIRE', wide.permits, FORGET, 'NX')
  else
    wide = false
  end
end

-- Figures, and what is forgotten.
for k, figure in ipairs(figures) do
  local c = k == 1 and wide or keys(k - 1)
  local h = redis.call('HMGET', c.state, 'run', 'learn', 'size', 'goal', 'goal_at', 'tick',
    'pace', 'short_at', 'owe', 'batch', 'parked_at', 'answered')
  for i, name in ipairs({ 'learn', 'size', 'goal', 'goal_at', 'tick', 'pace', 'short_at', 'owe', 'batch',
    'parked_at', 'answered' }) do
    c[name] = tonumber(h[i + 1] or '0')
  end
  -- A new server, a failover, or keys that are gone: every permit may be out, until the longest
  -- lease has ended. Holders bring theirs back sooner.
  if h[1] ~= run or redis.call('ZCARD', c.permits) ~= c.size then
    redis.call('DEL', c.permits, c.state, c.parked, c.out)
    c = { permits = c.permits, state = c.state, parked = c.parked, out = c.out, learn = odd(now + LONG),
      size = 0, goal = figure, goal_at = now, tick = 0, pace = 0, short_at = 0, owe = 0, batch = 0,
      parked_at = 0, answered = 0 }
  end
  c.learning = now < c.learn
  -- The lowest figure that any member named within LONG holds. So a permit that was removed and
  -- comes again is not out; it waits LONG all the same.
  if figure <= c.goal or now >= c.goal_at + LONG then c.goal = figure; c.goal_at = now end
  if c.size < c.goal then
    local to = math.min(c.goal, c.size + CHUNK)
    -- Of its holder before, if there is one, nothing is known but that its lease has ended by then. A
    -- twentieth, and at least one, probes.
    local from = c.learning and c.learn or now + LONG
    for id = c.size, to - 1 do
      if id < math.ceil(c.goal / 20) then
        redis.call('ZADD', c.permits, int(from), int(id))
      else
        redis.call('ZADD', c.permits, int(from + hold), int(id))
        redis.call('ZADD', c.out, int(from), int(id))
      end
    end
    c.size = to
  elseif c.size > c.goal then
    local to = math.max(c.goal, c.size - CHUNK)
    for id = to, c.size - 1 do
      redis.call('ZREM', c.permits, int(id))
      redis.call('ZREM', c.out, int(id))
    end
    c.size = to
  end
  redis.call('ZREMRANGEBYSCORE', c.parked, '-inf', int(now))
  ceilings[k] = c
end

-- Withholds the permit; the debt shrinks.
local function park(c, id)
  local back = int(now + PARK / 2 + math.floor(PARK * c.owe / c.batch))
  redis.call('ZADD', c.permits, 'XX', back, id)
  redis.call('ZADD', c.parked, back, id)
  c.owe = c.owe - 1
end

-- Given back: only what is still its giver's. During the warm-up, a permit that no holder has returned
-- yet is whose lease of before has not ended: leases do not overlap, so there is one such holder.
-- The lease's end is by the clock of the server before. Not so where the ceiling of all regions begins:
-- each region has such a holder, so none claims anything.
for g = 9, #ARGV do
  local ids, nonce, free_in = string.match(ARGV[g], '^([%d,]+):(%d+):(%d+)$')
  local k = 0
  for id in string.gmatch(ids, '%d+') do
    k = k + 1
    local c = ceilings[k]
    local score = redis.call('ZSCORE', c.permits, id)
    local till = tonumber(nonce) - hold + cycle
    local unclaimed = score == int(c.learn) or redis.call('ZSCORE', c.out, id) == int(c.learn)
    local unread = tonumber(free_in) == hold
    local lives = unread and tonumber(nonce) > now + SKEW and tonumber(nonce) <= c.learn + hold
      or till > now + SKEW and till <= c.learn
    local claims = c.learning and not (k == 1 and wide)
    if score == nonce or claims and unclaimed and lives then
      if unread then
        local last = odd(now) - 1
        redis.call('ZADD', c.permits, 'XX', int(last + hold), id)
        redis.call('ZADD', c.out, int(last), id)
      else
        redis.call('ZREM', c.out, id)
        if c.owe > 0 then park(c, id)
        else redis.call('ZADD', c.permits, 'XX', int(now + free_in), id) end
      end
    end
  end
end

-- What its holder did not give back comes back, when a later call was answered. So does what was made
-- during the warm-up: nothing speaks for a part of the provider standing still.
local function release(c, from, to)
  local ids = redis.call('ZRANGE', c.out, from, to, 'BYSCORE', 'LIMIT', 0, CHUNK, 'WITHSCORES')
  for i = 1, #ids, 2 do
    local id, last = ids[i], tonumber(ids[i + 1])
    if redis.call('ZSCORE', c.permits, id) == int(last + hold) then
      redis.call('ZADD', c.permits, 'XX', int(now + SETTLE + WINDOW), id)
      redis.call('ZREM', c.out, id)
    elseif last + hold <= now then
      redis.call('ZREM', c.out, id)
    end
  end
end
for _, c in ipairs(ceilings) do
  c.answered = math.max(c.answered, answered)
  release(c, '-inf', int(math.min(c.answered - 1, now - min)))
  if c.answered > c.learn and not c.learning then release(c, int(c.learn), int(c.learn)) end
end

-- The provider pushed back: a tenth of the account's permits at work rest. Free ones at once, others
-- when they come back. At least one stays at work.
local account = ceilings[1]
if ARGV[4] == '1' and now >= account.parked_at + PARK_EVERY then
  local at_work = account.size - redis.call('ZCARD', account.parked) - account.owe
  local more = math.max(0, math.min(math.ceil(at_work / 10), at_work - 1))
  account.owe = account.owe + more
  account.batch = account.owe
  account.parked_at = now
end
if account.owe > 0 then
  local most = math.min(account.owe, CHUNK)
  local free = redis.call('ZRANGE', account.permits, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, most)
  for _, id in ipairs(free) do park(account, id) end
end

-- Taken: of the narrowest ceiling the permit that fits best, then of the wider one that fits best
-- below it; a call waits for the later of both. Each ceiling has its pace: one group's that is used up
-- holds back no other group.
local out, again = {}, 0
for n = 1, want do
  local slot, late, ids, from = now, nil, {}, {}
  for k, c in ipairs(ceilings) do
    from[k] = math.max(now, c.pace - LAG)
    slot = math.max(slot, from[k])
  end
  for k = #ceilings, 1, -1 do
    local permits = ceilings[k].permits
    local p = redis.call('ZRANGE', permits, int(slot), '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')
    if #p == 0 then p = redis.call('ZRANGE', permits, 0, 0, 'WITHSCORES') end
    ids[k] = p[1]
    local score = tonumber(p[2])
    if score > slot then slot = score; from[k] = score; late = ceilings[k] end
  end
  if slot > now + HORIZON or (#out > 0 and slot > now + SPREAD) then
    -- What only the pace holds back is enough for all.
    if late then late.short_at = now end
    -- In time for what the pace lets through next.
    again = slot - now - SPREAD / 2
    break
  end
  again = slot - now
  -- Later than any score a permit had, so that no nonce comes twice.
  local last = odd(now + (n <= core and LONG or LEASE) - cycle) - 1
  local till = int(last + hold)
  for k, c in ipairs(ceilings) do
    c.pace = math.max(c.pace, from[k]) + math.floor(985000 / c.size)
    redis.call('ZADD', c.permits, 'XX', till, ids[k])
    redis.call('ZADD', c.out, int(last), ids[k])
  end
  out[#out + 1] = table.concat(ids, ',') .. ':' .. till .. ':' .. int(slot - now)
end

-- Scarce: less than an eighth is free. Each reply says when to ask again, as far apart as permits
-- come free: a queue in one number.
local scarce = 0
for k, c in ipairs(ceilings) do
  if redis.call('ZCOUNT', c.permits, '-inf', int(now)) * 8 < c.size then scarce = k end
end
-- Else nothing is to be had sooner than the pace lets it through.
local ask_in = math.min(again, LATEST)
if scarce > 0 and want > 0 then
  local c = ceilings[scarce]
  local turn = math.max(c.tick, now + 1000) + math.floor(950000 / c.size) * math.max(#out, 1)
  c.tick = math.min(turn, now + LATEST)
  ask_in = c.tick - now
end

local learn_in, short, goals = 0, 0, {}
for k, c in ipairs(ceilings) do
  learn_in = math.max(learn_in, c.learn - now)
  if now < c.short_at + SHORT then short = 1 end
  goals[k] = int(c.goal)
  redis.call('HSET', c.state, 'run', run, 'learn', int(c.learn), 'size', int(c.size),
    'goal', int(c.goal), 'goal_at', int(c.goal_at), 'tick', int(c.tick), 'pace', int(c.pace),
    'short_at', int(c.short_at),
    'owe', int(c.owe), 'batch', int(c.batch), 'parked_at', int(c.parked_at),
    'answered', int(c.answered))
  -- It goes when it is empty, and its end with it.
  redis.call('PEXPIRE', c.out, FORGET)
end
return { int(now), int(learn_in), short, int(ask_in), table.concat(goals, ','),
  redis.call('ZCARD', account.parked) + account.owe, account.owe, wide and 1 or 0, out }
