#!/usr/bin/env bash
# Plants known bugs, one at a time, into a copy of the sources, and says after how many schedules the simulation finds
# each. Fails when one is not found. `plants.sh NAME...` tries only these.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly root=$PWD
readonly work=${CARGO_TARGET_DIR:-$root/target}/plants
readonly copy=$work/sources
readonly schedules=${SCHEDULES:-10000}
export CARGO_TARGET_DIR=$work/build
export CARGO_TERM_COLOR=never
# A plant may leave something unused.
export RUSTFLAGS=-Awarnings
# Quick builds: every plant is one, and is run for seconds.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL=1

rm -rf "$copy"
mkdir -p "$copy"
# Weights are not needed to build the simulation.
git ls-files -z -- . ':!models' | tar --null --files-from=- --create | tar --extract --directory="$copy"
cd "$copy"

missed=0
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for patch in "$root"/tests/sim/plants/*.patch; do
        names+=("$(basename "$patch" .patch)")
    done
fi
for name in "${names[@]}"; do
    patch=$root/tests/sim/plants/$name.patch
    patch --quiet --strip=1 <"$patch"
    if ! cargo build --quiet --release -p offshoot-sim --bin simulate; then
        printf '%-40s does not build\n' "$name"
        missed=1
    elif verdict=$("$CARGO_TARGET_DIR/release/simulate" --schedules "$schedules"); then
        printf '%-40s NOT FOUND in %s schedules\n' "$name" "$schedules"
        missed=1
    else
        printf '%-40s %s\n' "$name" "$(head -n 1 <<<"$verdict" | cut -c 1-120)"
    fi
    patch --quiet --strip=1 --reverse <"$patch"
done
exit "$missed"
