#!/bin/sh
# Holds the dependency tree against deny.toml. Licences, sources and bans need no network; known
# advisories need the advisory database, which is asked for and, where it can't be had, said to be
# missing.
set -eu
cd "$(dirname "$0")/.."

version="0.20.2"
tools="target/test-tools"
deny="$tools/bin/cargo-deny"
if ! "$deny" --version 2>/dev/null | grep -q " $version$"; then
    CARGO_TARGET_DIR="$tools/build" cargo install --quiet --locked --debug --root "$tools" \
        cargo-deny --version "$version"
fi

"$deny" check bans licenses sources
if "$deny" fetch db >/dev/null 2>&1; then
    "$deny" check advisories
else
    echo "tests/deny.sh: the advisory database can't be had here: advisories were NOT checked" >&2
fi
