#!/bin/sh
# Runs a command, shows what it prints, and fails where a secret of the tests is in it.
set -eu
output=$(mktemp)
trap 'rm -f "$output" "$output.code"' EXIT
{ "$@" 2>&1 || echo $? >"$output.code"; } | tee "$output"
secrets=$(dirname "$0")/support/secrets.txt
[ -s "$secrets" ] || { echo "tests/searched.sh: there is no $secrets" >&2; exit 1; }
if grep -n -F -f "$secrets" "$output" >&2; then
    echo "tests/searched.sh: the lines above show a secret of the tests" >&2
    exit 1
fi
[ ! -e "$output.code" ] || exit "$(cat "$output.code")"
echo "tests/searched.sh: $(wc -l <"$output") lines, and no secret in them"
