"""Processes of a cluster on free ports, and waiting for what they do."""

import contextlib
import io
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "fn main() {"
LIMIT = 60


class Process:
    """A role on a free port."""

    def __init__(self, binary, *arguments, env=None):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OFFSHOOT_")}
        command = [binary, *arguments, "--announce", "--exit-with-parent", "--log-level", "error"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean | (env or {}), text=True
        )
        self.address = json.loads(self.process.stdout.readline())["addr"]

    def kill(self):
        self.process.kill()
        self.process.wait()


def eventually(what, limit=LIMIT):
    """Waits until `what` returns something true."""
    end = time.monotonic() + limit
    while not (found := what()):
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.02)
    return found


def silently(call, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)
