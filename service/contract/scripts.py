"""Lua that Redis runs as one step: the changes that must not fall between two other ones."""

from __future__ import annotations

WRITTEN, STALE, NOT_HOLDER = 1, 0, -2

# Write a job's record if its revision is still the one that was read, and its lease is held by
# the writer ("" for: whoever holds it; "-" for: nobody may hold it). A job that ended leaves the
# set of active ones, and needs no cancel flag. Gone records answer STALE: the next read says so.
# A write whose answer was lost comes again from redis-py: its own name in "by" tells it apart.
UPDATE = """
local job, active, lease, cancel = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
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
if ended == '1' then
  redis.call('SREM', active, id)
  redis.call('DEL', cancel)
end
return 1
"""

# Extend a lease that is held, or take it up again if it ran out and nobody has it.
RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# Give a lease back, unless it is another's by now.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
