#!/bin/sh
# Puts the password of Redis into its address, then becomes the program it was given, so that signals reach that
# program itself. Without PPL_REDIS_PASSWORD_FILE nothing is changed, and PPL_REDIS_URL counts as it stands.
set -eu

if [ -n "${PPL_REDIS_PASSWORD_FILE:-}" ]; then
    password=$(cat "$PPL_REDIS_PASSWORD_FILE")
    PPL_REDIS_URL="redis://:${password}@${PPL_REDIS_HOST:-redis}:${PPL_REDIS_PORT:-6379}/0"
    export PPL_REDIS_URL
fi

exec "$@"
