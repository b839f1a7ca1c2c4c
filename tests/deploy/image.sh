#!/usr/bin/env bash
# Builds a stage of deploy/image/Containerfile around a binary that is there already, on a base that mmdebstrap makes:
# no registry is asked, and the default bases are not pulled.
#
#   image.sh WORK                       # only the base
#   image.sh WORK BINARY TAG [STAGE]    # the stage (nano) as localhost/TAG; WORK keeps the base from run to run
set -euo pipefail
work=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
base=localhost/offshoot-base:1

if ! buildah inspect --type image "$base" > "$work/base.json" 2> "$work/base.log"; then
    # shellcheck source=/dev/null
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --variant=extract --include=base-files,ca-certificates,libc6,libgcc-s1 \
        --dpkgopt=path-exclude='/usr/share/doc/*' --dpkgopt=path-exclude='/usr/share/man/*' "$suite" "$work/root.tar"
    # A distroless base has libraries and no programs.
    tar --delete -f "$work/root.tar" ./usr/bin ./usr/sbin ./bin ./sbin
    printf 'FROM scratch\nADD root.tar /\n' > "$work/base.Containerfile"
    buildah bud --quiet --isolation chroot -t "$base" -f "$work/base.Containerfile" "$work"
fi

[ $# = 1 ] && exit
binary=$(realpath "$2") tag=$3 stage=${4:-nano}

# The build stage is left out: its result is given as a context of the same name.
mkdir -p "$work/build/src/target/release"
strip -o "$work/build/src/target/release/offshoot" "$binary"
buildah bud --quiet --isolation chroot --build-arg RUN_BASE="$base" --build-arg CUDA_BASE="$base" \
    --build-arg VERSION=test --build-context build="$work/build" \
    --target "$stage" -t "localhost/$tag" -f "$root/deploy/image/Containerfile" "$root"
