-- The sidecars that share the ceilings. Each reports its state every few seconds; one that has not
-- reported for longer than GONE is forgotten.
--
-- KEYS  1 when each reported, in milliseconds of this server's clock   2 the reports
--       3 … the ceilings that this one shares
-- ARGV  1 the sidecar   2 its report; empty: it leaves   3 how many reports to return
-- Returns how many there are, { "milliseconds ago:report" … }, the latest first

local GONE, CHUNK = 15000, 100
-- A fleet that has ended leaves nothing behind, nor does an egress group without sidecars.
-- Who comes back to ceilings that are forgotten waits until they are learnt: so not over a weekend.
local FORGET, FORGET_CEILING = 3600000, 7 * 24 * 3600000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local seen, words = KEYS[1], KEYS[2]

if ARGV[2] == '' then
  redis.call('ZREM', seen, ARGV[1])
  redis.call('HDEL', words, ARGV[1])
else
  redis.call('ZADD', seen, string.format('%.0f', now), ARGV[1])
  redis.call('HSET', words, ARGV[1], ARGV[2])
end

local gone = redis.call('ZRANGE', seen, '-inf', string.format('%.0f', now - GONE), 'BYSCORE', 'LIMIT', 0, CHUNK)
for _, id in ipairs(gone) do
  redis.call('ZREM', seen, id)
  redis.call('HDEL', words, id)
end
redis.call('PEXPIRE', seen, FORGET)
redis.call('PEXPIRE', words, FORGET)
for k = 3, #KEYS do redis.call('PEXPIRE', KEYS[k], FORGET_CEILING) end

local reports, most = {}, tonumber(ARGV[3])
if most > 0 then
  local last = redis.call('ZRANGE', seen, 0, most - 1, 'REV', 'WITHSCORES')
  for n = 1, #last, 2 do
    local report = redis.call('HGET', words, last[n])
    if report then reports[#reports + 1] = string.format('%.0f:', now - tonumber(last[n + 1])) .. report end
  end
end
return { redis.call('ZCARD', seen), reports }
