#!/bin/sh
# Create the Redis password and give the volumes to the user of all services. Runs as root before the other services.
# Idempotent: an existing password stays unless REDIS_PASSWORD sets another.
set -eu

owner="${PPL_UID:?}:${PPL_UID:?}"
secret=/volumes/secret
umask 077

case "${REDIS_PASSWORD:-}" in
    *[!A-Za-z0-9_.~-]*)
        echo "REDIS_PASSWORD has other characters than letters, digits and _ . ~ - which an address may contain; choose another" >&2
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

# the top folders only: the services own what they wrote below
chown -R "$owner" "$secret"
chown "$owner" /volumes/redis /volumes/data /volumes/cache
echo "password and volumes are ready"
