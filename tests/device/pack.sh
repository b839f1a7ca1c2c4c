#!/usr/bin/env bash
# Builds what a card's machine cannot, and puts it beside run.sh: the offshoot binary and the engine's GPU tests, stripped and
# compressed. A card's machine then needs no build: copy the repository with this folder's `packed`.
set -euo pipefail
cd "$(dirname "$0")/../.."
packed=tests/device/packed
mkdir -p "$packed"
cargo build --release -p offshoot
test=$(cargo test --release -p offshoot-engine --test cuda --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/cuda-[^"]*\)".*/\1/p')
for name in offshoot cuda-test; do
    case $name in offshoot) from=target/release/offshoot ;; *) from=$test ;; esac
    strip -o "$packed/$name" "$from"
    xz -T0 -3 -f "$packed/$name"
done
ls -l "$packed"
most=$((20 << 20)) size=$(cat "$packed"/*.xz | wc -c)
if [ "$size" -gt "$most" ]; then
    echo "$packed has $size bytes, and $most is the most that a card's machine is sent"
    exit 1
fi
