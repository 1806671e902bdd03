-- Which of the commands of bill.lua, and of those that read the bill, this user may not run on these keys.
local lacks = {}
local function needs(command, ...)
  if not redis.acl_check_cmd(command, ...) then lacks[#lacks + 1] = string.lower(command) end
end
needs('TIME')
needs('INFO', 'server', 'replication')
local key = KEYS[1]
needs('HDEL', key, '0')
needs('HGET', key, '0')
needs('HGETALL', key)
needs('HLEN', key)
needs('HMGET', key, '0')
needs('HSET', key, '0', '0')
needs('PEXPIRE', key, '1')
needs('ZADD', key, '0', '0')
needs('ZCARD', key)
needs('ZRANGE', key, '0', '0')
needs('ZREM', key, '0')
needs('ZREMRANGEBYSCORE', key, '0', '0')
return lacks
