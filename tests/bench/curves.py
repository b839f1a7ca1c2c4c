#!/usr/bin/env python3
"""Throughput by the number of concurrent requests: strategies side by side on one cluster, round by round.

    tests/bench/curves.py target/release/offshoot --concurrency 1,2,4,8,16,32,64 --rounds 5

In each round `offshoot bench` runs every strategy on the same prompts in turn; a request that ends is followed by the next
one, so that there are always that many. For each number of concurrent requests it
prints, by strategy, the median of the total tokens per second, the geometric mean of the paired ratio to `ar` with a 95 %
interval from 10,000 bootstrap resamples of the rounds, and the medians of the time to first token and of the 99th
percentile of inter-token latency. Options after `--` go to `offshoot bench`. It needs nothing but Python.
"""

import argparse
import math
import pathlib
import statistics
import sys

from rounds import bench, interval, options


def run(args, concurrency, extra):
    """One round: the report's entry of each strategy."""
    limit = max(concurrency * args.groups, args.least)
    # Of the prompts in the file, as often as needed.
    lines = pathlib.Path(args.prompts).read_text().splitlines()
    prompts = [lines[at % len(lines)] for at in range(limit)]
    own = ["--strategies", args.strategies, "--concurrency", concurrency]
    own += ["--max-tokens", args.max_tokens, "--temperature", args.temperature]
    return bench(args.binary, prompts, [*own, *extra])


def main():
    own, extra = options(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--prompts", default="tests/prompts/heldout.jsonl")
    parser.add_argument("--concurrency", default="1,2,4,8,16,32,64")
    parser.add_argument("--strategies", default="ar,serial-tree,auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=8, help="prompts per round and concurrent request")
    parser.add_argument("--least", type=int, default=16, help="prompts per round, at least")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args(own)
    head = f"{'at a time':>9} {'strategy':<16} {'tok/s':>8} {'x ar':>6} {'95 % interval':>16}"
    print(f"{head} {'ttft ms':>8} {'itl99 ms':>9} {'differ':>7}", flush=True)
    for concurrency in [int(part) for part in args.concurrency.split(",")]:
        rounds = [run(args, concurrency, extra) for _ in range(args.rounds)]
        for label in rounds[0]:
            each = [entries[label] for entries in rounds]
            middle = lambda key: statistics.median(entry[key] for entry in each)
            logs = [
                math.log(entries[label]["throughput_tok_s"] / entries["ar"]["throughput_tok_s"])
                for entries in rounds
            ]
            mean, low, high = (math.exp(value) for value in interval(logs))
            differ = sum(entry["differing_requests"] for entry in each)
            print(
                f"{concurrency:>9} {label:<16} {middle('throughput_tok_s'):>8.1f} {mean:>6.3f}"
                f" {low:>7.3f} to {high:>5.3f} {middle('ttft_ms'):>8.1f} {middle('itl_p99_ms'):>9.1f} {differ:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
