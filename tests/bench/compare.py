#!/usr/bin/env python3
"""Compares two builds of `offshoot` on a paced rig: same prompts, same seeds, taking turns.

    tests/bench/compare.py OLD NEW --prompts tests/prompts/heldout.jsonl --limit 32 --temperature 0

Each build serves a few prompts on a cluster of its own, then the other one serves the same prompts, and so on, so that
drift of the machine hits both alike. For each strategy it prints the median speed of both, the geometric mean of the
paired ratio new / old with a 95 % interval from 10,000 bootstrap resamples of the prompts, and how many completions
differ. With --rounds a prompt counts once, with the mean over its rounds. It needs nothing but Python.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys

from rounds import bench, interval


def run(binary, prompts, args):
    """One build on some prompts: by strategy, the speed and the tokens of each."""
    own = ["--strategies", args.strategies, "--max-tokens", args.max_tokens]
    own += ["--temperature", args.temperature, "--models", args.models]
    if args.pace:
        own += ["--pace", args.pace]
    return bench(binary, [json.dumps({"prompt": prompt}) for prompt in prompts], own)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--prompts", default="tests/prompts/heldout.jsonl")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--strategies", default="ar,auto")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--pace", default="target=20,qualifier=7,draft=2")
    parser.add_argument("--models", default="models")
    parser.add_argument("--rounds", type=int, default=1, help="how often every prompt is run")
    args = parser.parse_args()
    lines = pathlib.Path(args.prompts).read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines if line.strip()][: args.limit]
    speeds = {}
    for turn in range(args.rounds):
        for at, prompt in enumerate(prompts):
            # One prompt at a time, so that each pair lies close together in time.
            order = [("old", args.old), ("new", args.new)]
            if (at + turn) % 2:
                order.reverse()
            for side, binary in order:
                for label, entry in run(binary, [prompt], args).items():
                    one = speeds.setdefault(label, {"old": [], "new": [], "tokens": {"old": [], "new": []}})
                    one[side].append(entry["tok_s"])
                    one["tokens"][side].append(entry["token_ids"])
            print(f"\r{turn * len(prompts) + at + 1} of {args.rounds * len(prompts)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    pace = f"PACED ({args.pace})" if args.pace else "not paced"
    print(f"{pace}; {len(prompts)} prompts x {args.rounds}, {args.max_tokens} tokens, T = {args.temperature}")
    print(f"{'strategy':<24} {'old tok/s':>10} {'new tok/s':>10} {'new/old':>8} {'95 % interval':>16} {'differ':>7}")
    for label, one in speeds.items():
        pairs = [math.log(new / old) for old, new in zip(one["old"], one["new"])]
        # One value per prompt: rounds of one prompt are no independent prompts.
        logs = [statistics.fmean(pairs[at :: len(prompts)]) for at in range(len(prompts))]
        mean, low, high = (math.exp(value) for value in interval(logs))
        differ = sum(a != b for a, b in zip(one["tokens"]["old"], one["tokens"]["new"]))
        print(
            f"{label:<24} {statistics.median(one['old']):>10.1f} {statistics.median(one['new']):>10.1f}"
            f" {mean:>8.3f} {low:>7.3f} to {high:>5.3f} {differ:>7}"
        )


if __name__ == "__main__":
    main()
