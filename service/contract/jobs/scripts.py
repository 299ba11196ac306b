"""Lua scripts, for changes that Redis must make in one step."""

from __future__ import annotations

WRITTEN, STALE, NOT_HOLDER = 1, 0, -2

# Append events to a job's stream, and checkpoint events also to its list of checkpoints.
_APPEND = """
local function append(job, stream, checkpoints, encoded, at, keep, keep_checkpoints)
  local events = cjson.decode(encoded)
  local id = redis.call('HINCRBY', job, 'events', #events) - #events
  for index, event in ipairs(events) do
    redis.call('XADD', stream, 'MAXLEN', '~', keep, (id + index) .. '-0', 'kind', event[1], 'at', at, 'data', event[2])
    if event[1] == 'checkpoint' then
      redis.call('RPUSH', checkpoints, event[2])
      redis.call('LTRIM', checkpoints, -keep_checkpoints, -1)
    end
  end
end
"""

# Write a job's record if its revision is the one that was read and its lease is held by the writer ("": held by any
# process or none, "-": held by none). A job that ended leaves the set of active ones and loses its cancel flag; its
# webhook is due at once, by whatever clock. A deleted record answers STALE: the next read raises. redis-py repeats a
# write whose answer was lost; the write's id in "by" identifies it.
UPDATE = (
    _APPEND
    + """
local job, active, lease, cancel, stream, checkpoints = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local webhooks, due = KEYS[7], ARGV[11]
local revision, record, holder, ended, id, write = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if redis.call('HGET', job, 'rev') ~= revision then
  return redis.call('HGET', job, 'by') == write and 1 or 0
end
if holder == '-' then
  if redis.call('EXISTS', lease) == 1 then return -2 end
elseif holder ~= '' then
  if redis.call('GET', lease) ~= holder then return -2 end
end
redis.call('HSET', job, 'record', record, 'by', write)
redis.call('HINCRBY', job, 'rev', 1)
append(job, stream, checkpoints, ARGV[7], ARGV[8], ARGV[9], ARGV[10])
if ended == '1' then
  redis.call('SREM', active, id)
  redis.call('DEL', cancel)
  local time = redis.call('TIME')
  redis.call('HSETNX', job, 'ended_at', time[1] + time[2] / 1e6)
end
if due ~= '' then redis.call('ZADD', webhooks, 0, id) end
return 1
"""
)

# Check the limits on unfinished jobs, of all and of one owner; 0 is no limit. "prefix" is that of a job's key.
_ROOM = """
local function room(active, owner, most, most_of_owner, prefix)
  if most > 0 and redis.call('SCARD', active) >= most then return 'full' end
  if owner ~= '' and most_of_owner > 0 then
    local count = 0
    for _, id in ipairs(redis.call('SMEMBERS', active)) do
      if redis.call('HGET', prefix .. id, 'owner') == owner then count = count + 1 end
    end
    if count >= most_of_owner then return 'owner full' end
  end
  return ''
end
"""

ROOM = _ROOM + "return room(KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4])"

# Create a job's record unless it exists: redis-py repeats a write whose answer was lost. If a request of the same name
# created a job that still exists, answer that job's id and the request's fingerprint instead.
CREATE = (
    _APPEND
    + _ROOM
    + """
local job, jobs, active, stream, checkpoints, name = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local record, id, owner, fingerprint, keep = ARGV[1], ARGV[2], ARGV[7], ARGV[10], ARGV[11]
if redis.call('EXISTS', job) == 1 then return '' end
if name then
  local before = redis.call('HMGET', name, 'job', 'fingerprint')
  if before[1] and redis.call('ZSCORE', jobs, before[1]) then return before[1] .. ' ' .. before[2] end
end
local full = room(active, owner, tonumber(ARGV[8]), tonumber(ARGV[9]), string.sub(job, 1, -1 - #id))
if full ~= '' then return full end
if name then
  redis.call('HSET', name, 'job', id, 'fingerprint', fingerprint)
  redis.call('EXPIRE', name, keep)
end
redis.call('DEL', stream, checkpoints)
redis.call('HSET', job, 'rev', 1, 'record', record)
if owner ~= '' then redis.call('HSET', job, 'owner', owner) end
redis.call('ZADD', jobs, 0, id)
redis.call('SADD', active, id)
append(job, stream, checkpoints, ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return ''
"""
)

# List the jobs whose webhook is due. One of a time further away than any retry was postponed before the clock of Redis
# was set back.
DUE = """
local time, limit = redis.call('TIME'), tonumber(ARGV[2])
local now = time[1] + time[2] / 1e6
local due = redis.call('ZRANGEBYSCORE', KEYS[1], 0, now, 'LIMIT', 0, limit)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + ARGV[1] + 60, '+inf', 'LIMIT', 0, limit - #due)) do
  table.insert(due, id)
end
return due
"""

# Let a webhook be due in some seconds, if it is to be sent.
POSTPONE = """
local now = redis.call('TIME')
return redis.call('ZADD', KEYS[1], 'XX', now[1] + now[2] / 1e6 + ARGV[1], ARGV[2])
"""

# Move a job's message to the head of the queue: kombu pushes on the left and pops from the right.
TO_FRONT = """
for _, message in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  if string.find(message, ARGV[1], 1, true) then
    redis.call('LREM', KEYS[1], -1, message)
    redis.call('RPUSH', KEYS[1], message)
    return 1
  end
end
return 0
"""

# Extend a lease that is held, or take it again if it expired and is free.
RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# Release a lease unless another process holds it.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
