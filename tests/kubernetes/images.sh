#!/usr/bin/env bash
# The two images for run.py as docker archives, of binaries that are there already:
#
#   cargo build --release -p offshoot && cargo build --release -p offshoot-e2e --bin load
#   tests/kubernetes/images.sh OUT          # OUT/offshoot.tar and OUT/load.tar
#
# Load them into the nodes, and run:
#
#   export OFFSHOOT_IMAGE=localhost/offshoot:test OFFSHOOT_LOAD_IMAGE=localhost/offshoot-load:test OFFSHOOT_PULL_POLICY=Never
#   tests/kubernetes/run.py --clean
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
export CONTAINERS_CONF=${CONTAINERS_CONF:-$root/tests/deploy/containers.conf}

"$root/tests/deploy/image.sh" "$out/made" "$root/target/release/offshoot" offshoot:test
mkdir -p "$out/made/load"
strip -o "$out/made/load/load" "$root/target/release/load"
buildah bud --quiet --isolation chroot --build-arg RUN_BASE=localhost/offshoot-base:1 -t localhost/offshoot-load:test \
    -f "$here/Containerfile" "$out/made/load"
for name in offshoot load; do
    image=localhost/${name/load/offshoot-load}:test
    rm -f "$out/$name.tar"
    buildah push --quiet "$image" "docker-archive:$out/$name.tar:$image"
done
