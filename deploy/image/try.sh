#!/bin/sh
# Runs a packed image as Kubernetes would: try.sh FILE. As user 65532, without capabilities, on a read-only
# root, where only /run/tollgate and /var/lib/tollgate are writable; without an upstream. Prints the time
# until it is ready, and its size. Needs root, and Debian's packages runc, curl and python3.
set -eu
file=$1
work=$(mktemp -d)
name=tollgate-try-$$
end() {
    runc kill "$name" KILL 2>/dev/null || true
    runc delete --force "$name" 2>/dev/null || true
    rm -rf "$work"
}
trap end EXIT

mkdir -p "$work/image" "$work/rootfs"
tar -xf "$file" -C "$work/image"
python3 - "$work" <<'PY'
import glob, json, os, sys
work = sys.argv[1]
blob = lambda digest: work + "/image/blobs/" + digest.replace(":", "/")
manifest = json.load(open(blob(json.load(open(work + "/image/index.json"))["manifests"][0]["digest"])))
config = json.load(open(blob(manifest["config"]["digest"])))["config"]
print("image: %.1f MiB" % (sum(layer["size"] for layer in manifest["layers"]) / 2**20), file=sys.stderr)
for layer in manifest["layers"]:
    assert os.system("tar -xf %s -C %s/rootfs" % (blob(layer["digest"]), work)) == 0
for folder in ["proc", "dev"]:
    os.makedirs(work + "/rootfs/" + folder, exist_ok=True)
user, group = map(int, config["User"].split(":"))
settings = {"upstream.instance_id": "post-cn-0pp12gl0000", "upstream.endpoint": "http://127.0.0.1:1",
    "listen.publish": "127.0.0.1:18080", "listen.telemetry": "127.0.0.1:19464", "drain.grace": "1s"}
flags = [part for key, value in settings.items() for part in ("--set", key + "=" + value)]
volume = lambda at: {"destination": at, "type": "tmpfs", "source": "tmpfs",
    "options": ["nosuid", "nodev", "noexec", "mode=0755", "uid=%d" % user, "gid=%d" % group]}
json.dump({
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": user, "gid": group},
        "args": config["Entrypoint"] + config["Cmd"] + flags,
        "env": ["ALIBABA_CLOUD_ACCESS_KEY_ID=testid", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=testsecret"],
        "cwd": "/",
        "noNewPrivileges": True,
    },
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ] + [volume(at) for at in sorted(config["Volumes"])],
    "linux": {"namespaces": [{"type": kind} for kind in ["pid", "mount", "ipc", "uts"]]},
}, open(work + "/config.json", "w"))
PY

began=$(date +%s%N)
runc run --bundle "$work" "$name" >"$work/log" 2>&1 &
run=$!
until [ "$(curl -s -o "$work/ready" -w '%{http_code}' http://127.0.0.1:19464/readyz)" = 200 ]; do
    [ $((($(date +%s%N) - began) / 1000000)) -lt 10000 ] || { cat "$work/log"; exit 1; }
done
echo "ready in a container after $((($(date +%s%N) - began) / 1000000)) ms"
# without an upstream the message is stored, and the answer is 202
answered=$(curl -s -o "$work/answer" -w '%{http_code}' -H 'prefer: respond-async' --data-binary hello \
    http://127.0.0.1:18080/publish/TopicA)
[ "$answered" = 202 ] || { cat "$work/answer" "$work/log"; exit 1; }
pid=$(runc state "$name" | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|VmRSS)' "/proc/$pid/status"
runc kill "$name" TERM
wait "$run"
echo "ended with 0"
