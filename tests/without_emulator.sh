#!/bin/sh
# Holds what the container image is built with: no emulator, no demo, and not their MQTT client.
set -eu
cd "$(dirname "$0")/.."

if cargo tree --locked --no-default-features -e normal --prefix none | grep -q '^rumqttc '; then
    echo "tests/without_emulator.sh: the MQTT client is linked without the feature \`emulator\`" >&2
    exit 1
fi
# What it is built with is asked, not how fast it is. With a bench beside it, the dependencies are built with the
# features that the tests need, and so once for both.
output=$(mktemp)
trap 'rm -f "$output"' EXIT
if ! cargo build --color never --locked --no-default-features --bin tollgate --bench hot_road \
    --config profile.dev.package.tollgate.opt-level=0 >"$output" 2>&1; then
    cat "$output" >&2
    exit 1
fi
if grep -A 12 '^warning' "$output" >&2; then
    echo "tests/without_emulator.sh: the compiler warns without the feature \`emulator\`" >&2
    exit 1
fi
tollgate=target/debug/tollgate
help=$("$tollgate" --help)
case $help in
*serve*) ;;
*) echo "tests/without_emulator.sh: --help has no verb \`serve\`: $help" >&2 && exit 1 ;;
esac
for verb in demo emulator; do
    case $help in
    *"$verb"*) echo "tests/without_emulator.sh: --help has \`$verb\`: $help" >&2 && exit 1 ;;
    esac
    if "$tollgate" "$verb" --help >/dev/null 2>&1; then
        echo "tests/without_emulator.sh: there is a verb \`$verb\`" >&2
        exit 1
    fi
done
echo "tests/without_emulator.sh: no emulator, no demo, no MQTT client"
