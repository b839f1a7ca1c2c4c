#!/usr/bin/env bash
# Runs the examples of docs/clients.md that are not in Rust, and what a foreign client sees of waiting (waits.py), against real
# processes.
#
#   run.sh prepare     installs what the examples need, from package sources; never fails
#   run.sh check       runs every example for which there is what it needs; the last line counts those that were skipped
#
# BINARY names the offshoot binary (default target/release/offshoot), WORK the folder for what is installed (default
# target/client-checks).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
WORK=${WORK:-$root/target/client-checks}
BINARY=${BINARY:-$root/target/release/offshoot}
export PYTHONDONTWRITEBYTECODE=1

prepare() {
    mkdir -p "$WORK"
    if [ ! -e "$WORK/venv/complete" ]; then
        { python3 -m venv "$WORK/venv" && "$WORK/venv/bin/pip" install --quiet --requirement "$here/requirements.txt" \
            && touch "$WORK/venv/complete"; } || echo 'Python packages cannot be installed'
    fi
}

check() {
    local python=$WORK/venv/bin/python
    [ -x "$python" ] || python=python3
    "$python" "$here/check.py" --binary "$BINARY" --work "$WORK"
}

case ${1:-} in
    prepare) prepare ;;
    check) check ;;
    *) sed -n '5,9s/^# \?//p' "$0" >&2; exit 2 ;;
esac
