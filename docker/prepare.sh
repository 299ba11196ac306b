#!/bin/sh
# Runs once before everything else, as root: makes the password of Redis and gives the volumes to the user that all
# services run as. Harmless to run again: an existing password stays unless REDIS_PASSWORD names another.
set -eu

owner="${PPL_UID:?}:${PPL_UID:?}"
secret=/volumes/secret
umask 077

case "${REDIS_PASSWORD:-}" in
    *[!A-Za-z0-9_.~-]*)
        echo "REDIS_PASSWORD may hold letters, digits and the characters _ . ~ - only, since it becomes part of an address" >&2
        exit 1 ;;
esac

if [ -n "${REDIS_PASSWORD:-}" ]; then
    printf '%s' "$REDIS_PASSWORD" > "$secret/redis-password.new"
elif [ ! -s "$secret/redis-password" ]; then
    head -c 32 /dev/urandom | sha256sum | cut -c 1-64 | tr -d '\n' > "$secret/redis-password.new"
fi
if [ -s "$secret/redis-password.new" ]; then
    mv "$secret/redis-password.new" "$secret/redis-password"
fi
printf 'requirepass %s\n' "$(cat "$secret/redis-password")" > "$secret/redis.conf"

# the data folders only at their top: what the services wrote below is theirs already
chown -R "$owner" "$secret"
chown "$owner" /volumes/redis /volumes/data /volumes/cache
echo "password and volumes are ready"
