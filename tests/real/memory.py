#!/usr/bin/env python3
"""What a worker takes while it loads a model, and afterwards: time, and memory of its own against pages of files.

    tests/real/fetch.py && cargo build --release -p offshoot
    tests/real/memory.py target/release/offshoot [MODEL...] [-- FLAG...]

A MODEL is a path, or the name of one that fetch.py fetches; all of those if none is named. Flags go to `offshoot target-worker`.
From /proc/PID/status (Linux): anonymous memory (RssAnon) is the process's own; pages of files (RssFile) are those of the
executable and of the model's file as far as it is mapped, which the system takes back when it needs them. VmHWM is the most of both
together. Peaks of each are the most that was seen in samples 5 ms apart.
"""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

from fetch import FOLDER, MODELS

READY = "worker ready"


def status(pid):
    """Megabytes of this process by name."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: int(size.split()[0]) * 1024 / 1e6 for name, size in pairs}


def measure(binary, model, flags):
    inspected = subprocess.run([binary, "models", "inspect", model, "--json"], capture_output=True, text=True)
    weights = json.loads(inspected.stdout)["weight_bytes"] / 1e6
    begun = time.monotonic()
    command = [binary, "target-worker", "--model", model, "--host", "127.0.0.1", "--port", "0", *flags]
    worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(iter(worker.stderr.readline, "")), daemon=True)
    reader.start()
    peaks = {"RssAnon": 0.0, "RssFile": 0.0}
    while worker.poll() is None and not any(READY in line for line in said):
        now = status(worker.pid)
        peaks = {name: max(peak, now.get(name, 0.0)) for name, peak in peaks.items()}
        time.sleep(0.005)
    if worker.poll() is not None:
        sys.exit("".join(said))
    took = time.monotonic() - begun
    now = status(worker.pid)
    clock = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
    computed = (int(clock[11]) + int(clock[12])) / os.sysconf("SC_CLK_TCK")
    worker.terminate()
    worker.wait()
    row = (pathlib.Path(model).name, weights, peaks["RssAnon"], peaks["RssFile"], now["VmHWM"], now["RssAnon"], now["RssFile"], took, computed)
    print(f"{row[0]:<28}" + "".join(f"{number:>10.0f}" for number in row[1:7]) + f"{took:>10.1f}{computed:>10.1f}", flush=True)


def main():
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    (binary, *models), flags = words[:at], words[at + 1 :]
    models = models or [name for name in MODELS if (FOLDER / f"{name}.gguf").exists()]
    heads = ["weights", "anon peak", "file peak", "VmHWM", "anon", "file", "seconds", "CPU s"]
    print(f"{'MB':<28}" + "".join(f"{head:>10}" for head in heads))
    for model in models:
        path = FOLDER / f"{model}.gguf" if model in MODELS else model
        measure(binary, str(path), flags)


if __name__ == "__main__":
    main()
