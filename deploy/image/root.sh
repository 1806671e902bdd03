#!/bin/sh
# Lays out the image's root: root.sh BINARY FOLDER. The binary, the four libraries that it is linked
# with, and a list of all that is in it (CycloneDX), which scanners read. There is no shell and no
# package manager. Name resolution is inside libc, and time zones and certificates are in the binary.
# BINARY is one of `cargo build --release --no-default-features`: the image has no emulator, but for tests that
# pack the binary that they have (TOLLGATE_IMAGE_FOR_TESTS=1).
set -eu
binary=$1
root=$2
if [ -z "${TOLLGATE_IMAGE_FOR_TESTS:-}" ] && "$binary" --help | grep -q emulator; then
    echo "$0: $binary has the emulator: build it with --no-default-features" >&2
    exit 1
fi

mkdir -p "$root/run/tollgate" "$root/var/lib/tollgate/spool" "$root/lib64" "$root/usr/share/sbom"
install -D -m 0755 "$binary" "$root/usr/bin/tollgate"
# the loader stands alone on its line, a library behind "name =>"
files=$(ldd "$binary" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }')
for file in $files; do
    install -D -m 0755 "$file" "$root$file"
done

{
    cargo tree --locked --no-default-features -e normal --prefix none --format '{p}' |
        awk '{ sub("^v", "", $2); print "cargo", $1, $2 }'
    for file in $files; do
        # dpkg may know a library by its other name, from before /usr was merged
        dpkg-query -S "$(readlink -f "$file")" "*${file#/usr}" 2>/dev/null | head -n 1 | cut -d : -f 1
    done | sort -u | xargs dpkg-query -W -f 'deb/debian ${Package} ${Version}\n'
} | LC_ALL=C sort -u | awk '
    BEGIN { print "{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.5\",\"version\":1,\"components\":[" }
    { printf "%s{\"type\":\"library\",\"name\":\"%s\",\"version\":\"%s\",\"purl\":\"pkg:%s/%s@%s\"}", (NR > 1 ? ",\n" : ""), $2, $3, $1, $2, $3 }
    END { print "\n]}" }' >"$root/usr/share/sbom/tollgate.cdx.json"
