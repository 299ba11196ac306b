#!/bin/sh
# List what is in the images and ask for known vulnerabilities in it; `make audit` calls it.
# Writes build/sbom/{gateway,worker}.cdx.json (CycloneDX 1.6). Asks PyPI's database of advisories. Without an answer for
# each package it fails: nothing that was not looked up counts as audited.
set -eu
locks=docker/locks
sbom=build/sbom
mkdir -p "$sbom"

list_packages() { # FILE OUTPUT: the warning is about a dependency graph, which a list of pins does not have
    PYTHONWARNINGS=ignore cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible "$1" -o "$2"
    echo "$2: $(grep -c '"purl"' "$2") packages"
}

cat "$locks/gateway.lock" "$locks/worker.lock" "$locks/torch.txt" > "$sbom/worker.txt"
list_packages "$locks/gateway.lock" "$sbom/gateway.cdx.json"
list_packages "$sbom/worker.txt" "$sbom/worker.cdx.json"

failed=0
pip-audit --strict --disable-pip --require-hashes -r "$locks/gateway.lock" -r "$locks/worker.lock" -r "$locks/build.lock" \
    || failed=1
pip-audit --strict --disable-pip --no-deps -r "$locks/torch.txt" || failed=1
[ "$failed" = 0 ] || echo "audit failed: a vulnerability is known, or the database did not answer; see above" >&2
exit "$failed"
