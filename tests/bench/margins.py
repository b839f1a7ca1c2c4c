#!/usr/bin/env python3
"""How far one strategy is ahead of each other one, prompt by prompt, also while other programs use the machine.

    tests/bench/margins.py target/release/offshoot --busy 1 --temperature 1 -- --pace target=20,qualifier=7,draft=2

`offshoot bench` runs all strategies on one prompt after the other, so that drift of the machine hits them alike, on one cluster,
which learns as a server does. For each strategy it prints the median speed, and the geometric mean of the paired ratio of `--of` to it, with a 95 % interval from
10,000 bootstrap resamples of the prompts. `--busy N` keeps N cores busy meanwhile. Options after `--` go to `offshoot bench`.
It needs nothing but Python.
"""

import argparse
import math
import pathlib
import subprocess
import sys

from rounds import bench, interval, options

STRATEGIES = [
    "ar", "serial", "serial:gamma=4", "serial-tree", "serial-tree:depth=5:width=8:rows=32",
    "parallel", "ssd", "branch", "auto:qualifier=off",
]  # fmt: skip


def main():
    own, extra = options(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--of", default="auto:qualifier=off", help="the label of the strategy that is compared")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--prompts", default="tests/prompts/heldout.jsonl")
    parser.add_argument("--every", type=int, default=20, help="takes each N-th prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--busy", type=int, default=0, help="cores that something else uses")
    args = parser.parse_args(own)
    prompts = pathlib.Path(args.prompts).read_text().splitlines()[:: args.every]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    flags = ["--strategies", args.strategies, "--max-tokens", args.max_tokens, "--temperature", args.temperature]
    try:
        entries = bench(args.binary, prompts, [*flags, *extra])
    finally:
        for one in busy:
            one.kill()
    print(f"{len(prompts)} prompts, {args.max_tokens} tokens, T = {args.temperature}, {args.busy} cores busy; {' '.join(extra)}")
    print(f"{'strategy':<36} {'tok/s':>8} {args.of + ' over it':>26} {'95 % interval':>16} {'differ':>7}")
    speeds = {label: entry["request_tok_s"] for label, entry in entries.items()}
    for label, entry in entries.items():
        # A text of one token has no speed.
        pairs = [(mine, its) for mine, its in zip(speeds[args.of], speeds[label]) if mine and its]
        logs = [math.log(mine / its) for mine, its in pairs]
        mean, low, high = (math.exp(value) for value in interval(logs))
        print(f"{label:<36} {entry['tok_s']:>8.1f} {mean:>26.3f} {low:>7.3f} to {high:>5.3f} {entry['differing_requests']:>7}", flush=True)


if __name__ == "__main__":
    main()
