#!/usr/bin/env python3
"""A day of a large deployment in virtual time: 80 targets, up to 120 drafts, and the chart's autoscaler.

What a number of drafts brings at a load is computed by `offshoot simulate`, with the product's own strategies, in cells of few
workers (drafts a target, sessions a target) between which it is interpolated. The autoscaler is Kubernetes' algorithm for external
metrics with the targets, windows and policies that the chart renders. The load follows the hours, with a burst, a step and noise.
Of the three metrics of drafts two take part: `simulate` does not say how long updates wait at a draft.

Usage: day.py BINARY HELM
"""

import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TARGETS, MOST = 80, 120
TICK, DAY = 15, 24 * 3600
# Seconds until a draft that was asked for has sessions, and over which Prometheus takes rates.
START, RATE = 45, 60
STEPS = "target=1:40,64:60,draft=1:15,64:20"
# Targets and drafts of a cell, for a number of drafts a target; and sessions a target.
SHAPES = {1 / 8: (8, 1), 1 / 4: (4, 1), 1 / 2: (2, 1), 1: (1, 1), 1.5: (2, 3)}
LOADS = (1, 2, 4, 8)


def cells(binary):
    """Of (drafts a target, sessions a target): hunger in per cent, tokens of drafts and of all text a second and target."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for ratio, (targets, drafts) in SHAPES.items():
            for load in LOADS:
                out = Path(folder, "cell.json")
                number = targets * load
                subprocess.run(
                    [binary, "simulate", "--profile", str(ROOT / "models/profiles/nano.json"), "--step-ms", STEPS,
                     "--strategies", "auto:qualifier=off", "--targets", str(targets), "--drafts", str(drafts),
                     "--concurrency", str(number), "--requests", str(3 * number), "--max-tokens", "128", "--json", str(out)],
                    check=True, capture_output=True)
                one = json.loads(out.read_text())["strategies"][0]
                bubble, starved, text = one["target_bubble"], one["target_starved"], one["throughput_tok_s"] / targets
                hunger = 100 * (bubble + (1 - bubble) * starved)
                found[ratio, load] = (hunger, text * (1 - 1 / one["acceptance_length"]), text)
    return found


def between(found, ratio, load):
    """The three figures of a cell, interpolated: over the logarithm of the drafts, and over the load."""
    if load <= 0:
        return 0.0, 0.0, 0.0

    def weights(values, value, scale):
        values = sorted(values)
        value = min(max(value, values[0]), values[-1])
        upper = next(one for one in values if one >= value)
        lower = max((one for one in values if one <= value), default=upper)
        share = 0.0 if upper == lower else (scale(value) - scale(lower)) / (scale(upper) - scale(lower))
        return ((lower, 1 - share), (upper, share))

    sums = [0.0, 0.0, 0.0]
    for one, first in weights(SHAPES, ratio, math.log2):
        for other, second in weights(LOADS, load, float):
            for number, figure in enumerate(found[one, other]):
                sums[number] += first * second * figure
    # Below one session a target, that share of the targets has one.
    less = min(1.0, load / LOADS[0])
    return sums[0], sums[1] * less, sums[2] * less


def load(second, noise):
    """Sessions of the whole deployment."""
    hour = second / 3600
    base = 0.25 + 3.2 * max(0.0, math.sin(math.pi * (hour - 6) / 14)) ** 1.5
    if 11 <= hour < 11.25:
        base *= 1.6
    if hour >= 19.5:
        base += 3.5 * max(0.0, 1 - (hour - 19.5) / 3)
    return TARGETS * base * noise


class Autoscaler:
    """Kubernetes' algorithm for external metrics, of one autoscaler as the chart renders it."""

    def __init__(self, spec):
        self.least, self.most = spec["minReplicas"], spec["maxReplicas"]
        self.metrics = {}
        for metric in spec["metrics"]:
            target = metric["external"]["target"]
            self.metrics[metric["external"]["metric"]["name"]] = (target["type"], float(target.get("value") or target["averageValue"]))
        self.behavior = spec["behavior"]
        self.wanted, self.changes = [], []

    def proposal(self, now, replicas, ready, values):
        proposals = []
        for name, value in values.items():
            kind, target = self.metrics[name]
            ratio = value / target if kind == "Value" else value / (target * replicas)
            if abs(ratio - 1) <= 0.1:
                proposals.append(replicas)
            else:
                proposals.append(math.ceil(ratio * ready) if kind == "Value" else math.ceil(value / target))
        wanted = min(max(max(proposals), self.least), self.most)
        up = self.behavior["scaleUp"]["stabilizationWindowSeconds"]
        down = self.behavior["scaleDown"]["stabilizationWindowSeconds"]
        self.wanted = [(when, one) for when, one in self.wanted if when > now - max(up, down)] + [(now, wanted)]
        low = min(one for when, one in self.wanted if when > now - up or when == now)
        high = max(one for when, one in self.wanted if when > now - down or when == now)
        wanted = low if low > replicas else high if high < replicas else replicas
        return self.limited(now, replicas, wanted)

    def limited(self, now, replicas, wanted):
        """No more at a time than the policies allow; the one that allows most counts."""
        if wanted == replicas:
            return replicas
        sign = 1 if wanted > replicas else -1
        limits = []
        for policy in self.behavior["scaleUp" if sign > 0 else "scaleDown"]["policies"]:
            since = sum(change for when, change in self.changes if when > now - policy["periodSeconds"] and change * sign > 0)
            begun = replicas - since
            if policy["type"] == "Pods":
                limits.append(begun + sign * policy["value"])
            else:
                share = begun * (1 + sign * policy["value"] / 100)
                limits.append(math.ceil(share) if sign > 0 else math.floor(share))
        limit = max(limits) if sign > 0 else min(limits)
        chosen = min(wanted, max(limit, replicas)) if sign > 0 else max(wanted, min(limit, replicas))
        self.changes.append((now, chosen - replicas))
        return chosen


def day(found, spec, seed=1):
    """What the day came to: of every tick the drafts that there were and those that there should have been."""
    dice = random.Random(seed)
    scaler = Autoscaler(spec)
    replicas, starting, history, ticks = spec["minReplicas"], [], [], []
    for now in range(0, DAY, TICK):
        sessions = load(now, dice.uniform(0.93, 1.07)) / TARGETS
        ready = max(1, replicas - sum(number for when, number in starting if when + START > now))
        hunger, drafted, text = between(found, ready / TARGETS, sessions)
        history = [*history, (hunger, drafted * TARGETS)][-RATE // TICK:]
        values = {"offshoot_draft_hunger_percent": sum(one for one, _ in history) / len(history),
                  "offshoot_draft_tokens_per_second": sum(one for _, one in history) / len(history)}
        after = scaler.proposal(now, replicas, ready, values)
        if after > replicas:
            starting = [one for one in starting if one[0] + START > now] + [(now, after - replicas)]
        best = between(found, MOST / TARGETS, sessions)[2]
        ticks.append((now, sessions, replicas, text * TARGETS, best * TARGETS))
        replicas = after
    turns, direction = 0, 0
    for (_, _, one, _, _), (_, _, other, _, _) in zip(ticks, ticks[1:]):
        if other != one:
            turns += direction * (other - one) < 0
            direction = other - one
    return {
        "drafts": (min(one[2] for one in ticks), sum(one[2] for one in ticks) / len(ticks), max(one[2] for one in ticks)),
        "turns": turns,
        "text": sum(one[3] for one in ticks) / sum(one[4] for one in ticks),
        "lag": longest(ticks),
    }


def longest(ticks):
    """Minutes that throughput was more than 15 % below that of all drafts, without a break."""
    most = run = 0
    for _, _, _, text, best in ticks:
        run = run + TICK if best and text < 0.85 * best else 0
        most = max(most, run)
    return most / 60


def rendered(helm, values):
    """The autoscaler of the drafts, as the chart renders it."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"image": {"repository": "any"}, "target": {"model": "/m"}, "draft": {"model": "/m"},
                   "autoscaling": {"enabled": True, "draft": {"max": MOST, **values}}}, file)
        file.flush()
        text = subprocess.run([helm, "template", "offshoot", str(ROOT / "deploy/chart"), "--values", file.name],
                              check=True, capture_output=True, text=True).stdout
    return next(one["spec"] for one in yaml.safe_load_all(text)
                if one and one["kind"] == "HorizontalPodAutoscaler" and one["metadata"]["name"] == "offshoot-draft")


def main():
    binary, helm = sys.argv[1:]
    found = cells(binary)
    print("| sessions a target | " + " | ".join(f"{ratio:g} drafts a target" for ratio in SHAPES) + " |")
    print("| --- |" + " --- |" * len(SHAPES))
    for sessions in LOADS:
        row = [found[ratio, sessions] for ratio in SHAPES]
        print(f"| {sessions} | " + " | ".join(f"{hunger:.0f} %, {text:.0f} tok/s" for hunger, _, text in row) + " |")
    print()
    print("| targets of hunger and tokens | drafts: fewest, mean, most | changes of direction | text against 120 drafts | longest below 85 % |")
    print("| --- | --- | --- | --- | --- |")
    for hunger, tokens in ((20, 20), (33, 100), (33, 150)):
        one = day(found, rendered(helm, {"min": 8, "hungerPercent": hunger, "tokensPerSecond": tokens}))
        few, mean, many = one["drafts"]
        print(f"| {hunger} %, {tokens} tok/s | {few}, {mean:.0f}, {many} | {one['turns']} | {100 * one['text']:.1f} % | {one['lag']:.0f} min |")


if __name__ == "__main__":
    main()
