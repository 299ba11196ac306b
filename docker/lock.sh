#!/bin/sh
# Write docker/locks/*.lock: every package of the images with the SHA-256 of its files, as pyproject.toml pins it.
#   make lock                   adds what is missing and keeps the other versions
#   make lock LOCK=--upgrade    takes the newest of what pyproject.toml leaves open
# Needs uv: it resolves for the images' Python and Linux on any machine, and can leave packages out.
set -eu
locks=docker/locks
extras="--extra video --extra heic --extra interop --extra store --extra otel"

compile() {
    uv pip compile --quiet --config-file "$locks/settings.toml" --excludes "$locks/excluded.txt" --generate-hashes \
        --python-version 3.11 --python-platform linux --no-annotate --custom-compile-command "make lock" "$@"
}

# shellcheck disable=SC2086  # several words
{
    compile $extras "$@" pyproject.toml --output-file "$locks/gateway.lock"
    shared=$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' "$locks/gateway.lock")
    # what the worker's image needs beyond the gateway's: torch itself comes without hashes, its builds differ by index
    compile $extras --extra worker "$@" --constraints "$locks/gateway.lock" --no-emit-package torch $shared \
        pyproject.toml --output-file "$locks/worker.lock"
}
sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml | compile "$@" - --output-file "$locks/build.lock"
# what the worker's image installs from the index of its torch
sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml > "$locks/torch.txt"
