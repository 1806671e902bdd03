#!/bin/sh
# Packs the image without a daemon or a registry, from this machine's release binary: pack.sh FILE writes
# an OCI archive. The same as deploy/Dockerfile makes, and the same bytes for the same binary and commit.
# Debian's package buildah is enough.
set -eu
file=$1
binary=${2:-target/release/tollgate}
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
deploy/image/root.sh "$binary" "$work/root"

store() { buildah --storage-driver vfs --root "$work/store" --runroot "$work/run" "$@"; }
container=$(store from scratch)
store copy --quiet --chown 0:0 "$container" "$work/root" / >/dev/null
# only what it writes belongs to the user it runs as
for folder in run/tollgate var/lib/tollgate; do
    store copy --quiet --chown 65532:65532 "$container" "$work/root/$folder" "/$folder" >/dev/null
done
store config --user 65532:65532 --entrypoint '["/usr/bin/tollgate"]' --cmd serve \
    --port 8080 --port 9464 --volume /run/tollgate --volume /var/lib/tollgate \
    --label org.opencontainers.image.title=tollgate \
    --label org.opencontainers.image.licenses=Apache-2.0 \
    --label org.opencontainers.image.version=0.1.0 \
    --label "org.opencontainers.image.revision=$(git rev-parse --short=12 HEAD)" \
    "$container"
rm -f "$file"
store commit --quiet --timestamp "$(git log -1 --format=%ct)" "$container" "oci-archive:$file:tollgate:0.1.0" >/dev/null
