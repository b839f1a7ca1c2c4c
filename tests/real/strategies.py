#!/usr/bin/env python3
"""Counts tokens that differ from plain decoding, on models that people really run, under every strategy and by lookup alone.

    tests/real/fetch.py && cargo build --release -p offshoot
    tests/real/strategies.py target/release/offshoot [--models smollm2,...] [--prompts 32] [--max-tokens 32] [--temperature 0]

Draft and qualifier are copies of the model with a wrong last norm: their guesses come true often, but not always, so that every
strategy has something to accept and something to take back. Lookup alone has neither. A model that is not there is skipped and
counted. The exit status is 1 if a token differs or nothing was run.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from fetch import FOLDER, USUAL
from hurt import hurt

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "bench"))
from rounds import bench  # noqa: E402

PROMPTS = TESTS / "prompts/heldout.jsonl"
LOOKUP = "auto:drafts=0:qualifier=off"


def strategies(binary):
    """The names of all strategies, and lookup alone."""
    listed = subprocess.run([binary, "strategies"], capture_output=True, text=True, check=True)
    # What is said about one is indented.
    return [line.split()[0] for line in listed.stdout.splitlines() if line and not line[0].isspace()] + [LOOKUP]


def differing(ours, plain):
    """Tokens of a text that are not those of plain decoding; what one has and the other lacks differs."""
    return sum(a != b for a, b in zip(ours, plain)) + abs(len(ours) - len(plain))


def run(binary, name, args, folder):
    lines = PROMPTS.read_text().splitlines()[: args.prompts]
    cut = [json.dumps({"prompt": json.loads(line)["prompt"][: args.characters]}) for line in lines]
    target = FOLDER / f"{name}.gguf"
    options = ["--max-tokens", args.max_tokens, "--temperature", args.temperature, "--target", target]
    options += ["--strategies", ",".join(strategies(binary))]
    for helper, by in {"draft": 0.3, "qualifier": 0.1}.items():
        copy = folder / f"{helper}.gguf"
        hurt(target, copy, by)
        options += [f"--{helper}", copy]
    found = bench(binary, cut, options)
    plain = found["ar"]["token_ids"]
    total = 0
    print(f"{name}: {len(plain)} prompts, {sum(map(len, plain))} tokens, T = {args.temperature}")
    print(f"  {'strategy':<28} {'differing':>9} {'tokens a step':>14}")
    for label, entry in found.items():
        wrong = sum(differing(ours, other) for ours, other in zip(entry["token_ids"], plain, strict=True))
        total += wrong
        print(f"  {label:<28} {wrong:>9} {entry['acceptance_length']:>14.2f}", flush=True)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--models", default=",".join(USUAL))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--characters", type=int, default=200, help="of a prompt, from its beginning")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    ran, skipped, total = 0, 0, 0
    for name in args.models.split(","):
        if not (FOLDER / f"{name}.gguf").exists():
            print(f"{name}: skipped, tests/real/fetch.py fetches it")
            skipped += 1
            continue
        with tempfile.TemporaryDirectory() as folder:
            total += run(args.binary, name, args, pathlib.Path(folder))
        ran += 1
    print(f"{ran} models run, {skipped} skipped, {total} tokens differ")
    sys.exit(total > 0 or ran == 0)


if __name__ == "__main__":
    main()
