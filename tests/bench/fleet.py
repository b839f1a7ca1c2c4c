#!/usr/bin/env python3
"""Runs a large synthetic fleet on one machine for a while: real processes over real sockets, no weights.

    tests/bench/fleet.py target/release/offshoot --targets 16 --drafts 64 --seconds 600

It starts the workers and a coordinator, keeps a number of completions running, and compares each text with the one that
plain decoding gave for the same prompt and seed. It fails when a process ends, a completion fails or a text differs. At the
end it prints what was done, and the lines of `offshoot top`. It needs nothing but Python.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import time


class Fleet:
    """Processes that end with this one."""

    def __init__(self, binary, logs):
        self.binary, self.logs, self.processes = binary, logs, []

    def start(self, words):
        """Starts a process; its announcement is read later, so that many load at the same time."""
        log = open(self.logs / f"{len(self.processes)}.log", "w")
        command = [self.binary, *words, "--announce", "--exit-with-parent", "--host", "127.0.0.1", "--port", "0"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.processes.append((words[0], process))
        return process

    def ended(self):
        return [name for name, process in self.processes if process.poll() is not None]

    def stop(self):
        for _, process in self.processes:
            process.stdin.close()
        for _, process in self.processes:
            process.wait(timeout=60)


def address(process):
    return json.loads(process.stdout.readline())["addr"]


def complete(args, at, number, strategy):
    prompt = f"fn number_{number}() {{"
    command = [args.binary, "generate", prompt, "--connect", at, "--seed", str(number), "--strategy", strategy]
    command += ["--temperature", "1", "--max-tokens", str(args.max_tokens), "--drafts", str(args.drafts_each)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return None, done.stderr.strip()
    return done.stdout, done.stderr.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--qualifiers", type=int, default=0)
    parser.add_argument("--drafts", type=int, default=64)
    parser.add_argument("--drafts-each", type=int, default=4, help="drafts that serve a completion")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=32, help="different prompts")
    parser.add_argument("--profile", default="models/profiles/nano.json")
    parser.add_argument("--models", default="models")
    parser.add_argument("--step-ms", default="target=200,qualifier=70,draft=20")
    parser.add_argument("--logs", default="target/fleet")
    args = parser.parse_args()
    times = dict(item.split("=") for item in args.step_ms.split(","))
    logs = pathlib.Path(args.logs)
    logs.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(args.binary, logs)
    flags = ["--synthetic", args.profile]
    roles = [("target", args.targets), ("qualifier", args.qualifiers), ("draft", args.drafts)]
    started = []
    for role, count in roles:
        words = ["draft-worker"] if role == "draft" else ["target-worker", "--role", role]
        for _ in range(count):
            model = ["--model", f"{args.models}/{role}", "--step-ms", times[role]]
            started.append((role, fleet.start([*words, *model, *flags])))
    workers = [(role, address(process)) for role, process in started]
    words = ["coordinator", "--tokenizer", f"{args.models}/target"]
    for role, at in workers:
        words += [f"--{role}", at]
    at = address(fleet.start(words))
    # The first request waits until there is a target; a fleet of this size needs a moment to be connected.
    time.sleep(5)
    plain, begun = {}, time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.concurrency) as pool:
        references = pool.map(lambda number: complete(args, at, number, "ar"), range(args.prompts))
        for number, (text, said) in enumerate(references):
            if text is None:
                sys.exit(f"plain decoding of prompt {number} failed: {said}")
            plain[number] = text
        done = failed = differing = number = 0
        running = {}
        while time.monotonic() - begun < args.seconds or running:
            while len(running) < args.concurrency and time.monotonic() - begun < args.seconds:
                prompt = number % args.prompts
                running[pool.submit(complete, args, at, prompt, "auto")] = prompt
                number += 1
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                prompt = running.pop(future)
                text, said = future.result()
                done += 1
                if text is None:
                    failed += 1
                    print(said, file=sys.stderr)
                elif text != plain[prompt]:
                    differing += 1
            if ended := fleet.ended():
                sys.exit(f"ended by themselves: {ended}")
    seconds = time.monotonic() - begun
    top = subprocess.run([args.binary, "top", "--connect", at, "--once"], capture_output=True, text=True)
    print(f"SYNTHETIC fleet: {args.targets} targets, {args.qualifiers} qualifiers, {args.drafts} drafts, {args.step_ms} ms")
    print(f"{done} completions in {seconds:.0f} s, {failed} failed, {differing} differ from plain decoding")
    print(top.stdout or top.stderr)
    fleet.stop()
    sys.exit(1 if failed or differing else 0)


if __name__ == "__main__":
    main()
