-- Which of the commands of kept.lua this user may not run on these keys.
local lacks = {}
local function needs(command, ...)
  if not redis.acl_check_cmd(command, ...) then lacks[#lacks + 1] = string.lower(command) end
end
needs('TIME')
for _, key in ipairs(KEYS) do
  needs('HDEL', key, '0')
  needs('HEXISTS', key, '0')
  needs('HGET', key, '0')
  needs('HGETALL', key)
  needs('HINCRBY', key, '0', '0')
  needs('HSET', key, '0', '0')
  needs('XACK', key, '0', '0')
  needs('XADD', key, '0', '0', '0')
  needs('XCLAIM', key, '0', '0', '0', '0')
  needs('XDEL', key, '0')
  needs('XGROUP', 'CREATE', key, '0', '0')
  needs('XGROUP', 'DELCONSUMER', key, '0', '0')
  needs('XINFO', 'CONSUMERS', key, '0')
  needs('XPENDING', key, '0')
  needs('XRANGE', key, '0', '0')
  needs('ZADD', key, '0', '0')
  needs('ZCARD', key)
  needs('ZRANGE', key, '0', '0')
  needs('ZRANGEBYSCORE', key, '0', '0')
  needs('ZREM', key, '0')
  if #lacks > 0 then break end
end
return lacks
