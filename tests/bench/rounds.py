"""What the programs of this folder share: runs of `offshoot bench`, and intervals of what they say."""

import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile


def options(words):
    """The words before `--`, which are a program's own, and those after it, which go to `offshoot bench`."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def bench(binary, lines, options):
    """The report's entry of each strategy, by label, for prompts that are lines of JSON, without tuning."""
    with tempfile.TemporaryDirectory() as folder:
        prompts, out = pathlib.Path(folder) / "prompts.jsonl", pathlib.Path(folder) / "out.json"
        prompts.write_text("".join(line + "\n" for line in lines))
        command = [binary, "bench", "--prompts", prompts, "--json", out, "--tune-prompts", 0, *options]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{binary} failed: {done.stderr}")
        return {entry["label"]: entry for entry in json.loads(out.read_text())["strategies"]}


def interval(logs):
    """The mean and a 95 % bootstrap interval of it."""
    dice = random.Random(1)
    means = sorted(statistics.fmean(dice.choices(logs, k=len(logs))) for _ in range(10_000))
    return statistics.fmean(logs), means[250], means[9750]
