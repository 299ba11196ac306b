#!/bin/sh
# Add the Redis password to PPL_REDIS_URL, then exec the given program, so that it receives signals directly.
# Without PPL_REDIS_PASSWORD_FILE, PPL_REDIS_URL stays unchanged.
set -eu

if [ -n "${PPL_REDIS_PASSWORD_FILE:-}" ]; then
    password=$(cat "$PPL_REDIS_PASSWORD_FILE")
    PPL_REDIS_URL="redis://:${password}@${PPL_REDIS_HOST:-redis}:${PPL_REDIS_PORT:-6379}/0"
    export PPL_REDIS_URL
fi

exec "$@"
