#!/usr/bin/env python3
"""Fires every alert of deploy/monitoring once, by the fault that it is for.

Real processes on this machine (two coordinators, two targets, two drafts; synthetic models), real clients, a real Prometheus that
scrapes each second. The rules are those of deploy/monitoring with their times divided by 15, so that nobody has to wait; what they
compare is the same. Takes about five minutes.

Usage: alerts.py [--only TEXT]... BINARY PROMETHEUS
"""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
MODELS = ROOT / "models"
QUICKER = 15
PROMPT = "fn parse(text: &str) -> Option<u32> {"
STEPS = {"target": "40", "draft": "15"}


def quick(text):
    """Rules with shorter times, but none below six seconds."""
    def seconds(match):
        return f"{match[1]}{max(6, int(match[2]) * (60 if match[3] == 'm' else 1) // QUICKER)}s{match[4]}"

    text = re.sub(r"(\[)(\d+)([ms])(\])", seconds, text)
    return re.sub(r"(for: )(\d+)([ms])()", seconds, text).replace("interval: 5s", "interval: 1s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, check, limit):
    end = time.monotonic() + limit
    while not check():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit} s: {what}")
        time.sleep(0.25)


class Cluster:
    """Processes by name, such as target-0. Coordinators follow a file with the workers; Prometheus one with the admin ports."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.running = {}
        self.strangers = []

    def start(self, name, *flags, serving=None):
        role = name.partition("-")[0]
        port, admin = serving or free_port(), free_port()
        command = [self.binary, "coordinator" if role == "coordinator" else f"{role}-worker", "--port", str(port),
                   "--admin", f"127.0.0.1:{admin}"]
        if role == "coordinator":
            command += ["--tokenizer", str(MODELS / "target"), "--workers-file", str(self.folder / "workers")]
        else:
            command += ["--model", str(MODELS / role), "--synthetic", str(MODELS / "profiles/nano.json")]
            if "--step-ms" not in flags:
                command += ["--step-ms", STEPS[role]]
        log = open(self.folder / f"{name}.log", "a")
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=subprocess.STDOUT)
        self.running[name] = (process, f"127.0.0.1:{port}", f"127.0.0.1:{admin}", flags)
        self.list_workers()
        until(f"{name} has started", lambda: self.started(name), 60)

    def started(self, name):
        if self.running[name][0].poll() is not None:
            raise RuntimeError(f"{name} ended: {(self.folder / f'{name}.log').read_text()[-500:]}")
        return self.says(name, "startup")

    def ready(self, name):
        return self.says(name, "ready")

    def says(self, name, page):
        try:
            with urllib.request.urlopen(f"http://{self.running[name][2]}/{page}", timeout=2) as reply:
                return reply.status == 200
        except OSError:
            return False

    def stop(self, name, how=signal.SIGKILL):
        process, *_ = self.running.pop(name)
        process.send_signal(how)
        process.wait()
        self.list_workers()

    def replace(self, name, *flags):
        """The same name and address with other flags."""
        address = self.running[name][1]
        self.stop(name)
        self.start(name, *flags, serving=int(address.partition(":")[2]))

    def of(self, role):
        return sorted(name for name in self.running if name.startswith(role))

    def shape(self, **numbers):
        """Two of each role, or as many as is said, as they are shipped."""
        for role in ("target", "draft", "coordinator"):
            wanted = [f"{role}-{number}" for number in range(numbers.get(role, 2))]
            for name in self.of(role):
                if name not in wanted or self.running[name][3]:
                    self.stop(name)
            for name in wanted:
                if name not in self.running:
                    self.start(name)

    def list_workers(self):
        workers = [address for name, (_, address, _, _) in self.running.items() if not name.startswith("coordinator")]
        targets = [{"targets": [admin], "labels": {"namespace": "here", "pod": name, "app_kubernetes_io_instance": "offshoot"}}
                   for name, (_, _, admin, _) in self.running.items()]
        for file, text in (("workers", "\n".join([*workers, *self.strangers]) + "\n"), ("targets.json", json.dumps(targets))):
            (self.folder / f"{file}.new").write_text(text)
            (self.folder / f"{file}.new").rename(self.folder / file)

    def clear(self):
        for process, *_ in self.running.values():
            process.kill()
            process.wait()


class Clients:
    """Clients that send one request after the other, as the command line does."""

    def __init__(self, cluster, number, max_tokens=64):
        self.cluster, self.max_tokens = cluster, max_tokens
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(each,)) for each in range(number)]
        for thread in self.threads:
            thread.start()

    def ask(self, number):
        while not self.ending.is_set():
            coordinators = self.cluster.of("coordinator")
            if not coordinators:
                self.ending.wait(0.5)
                continue
            name = coordinators[number % len(coordinators)]
            address = self.cluster.running.get(name, (None, None))[1]
            if address:
                done = subprocess.Popen(
                    [self.cluster.binary, "generate", "--connect", address, "--ignore-eos", "--max-tokens", str(self.max_tokens), PROMPT],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                while done.poll() is None:
                    if self.ending.wait(0.1):
                        done.kill()
                if done.returncode != 0:
                    self.ending.wait(0.5)

    def stop(self):
        self.ending.set()
        for thread in self.threads:
            thread.join()


class Prometheus:
    def __init__(self, program, folder):
        for name in ("rules.yaml", "alerts.yaml"):
            (folder / name).write_text(quick((MONITORING / name).read_text()))
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": ["rules.yaml", "alerts.yaml"],
                  "scrape_configs": [{"job_name": "pods", "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}]}]}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_port()}"
        log = open(folder / "prometheus.log", "w")
        self.process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.address}"], stdout=log, stderr=subprocess.STDOUT)
        until("Prometheus answers", self.answers, 60)

    def answers(self):
        try:
            return self.ask("status/runtimeinfo") is not None
        except OSError:
            return False

    def ask(self, path, **query):
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as reply:
            return json.load(reply)["data"]

    def firing(self):
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}


def all_gone(role):
    return lambda cluster: [cluster.stop(name) for name in cluster.of(role)]


def one(role, *flags):
    """One process of a role alone, with these flags."""
    def begin(cluster):
        cluster.shape(**{role: 1})
        cluster.replace(f"{role}-0", *flags)

    return begin


def each(role, *flags):
    return lambda cluster: [cluster.replace(name, *flags) for name in cluster.of(role)]


def no_targets_and_no_patience(cluster):
    each("coordinator", "--failover-wait", "1")(cluster)
    until("coordinators have seen a target", lambda: all(map(cluster.ready, cluster.of("coordinator"))), 30)
    all_gone("target")(cluster)


def stranger(cluster):
    """A coordinator at an address where a worker is expected."""
    cluster.strangers.append(cluster.running["coordinator-1"][1])
    cluster.list_workers()


def kill_a_target(cluster):
    cluster.replace("target-0")
    time.sleep(2)
    cluster.replace("target-1")
    time.sleep(2)


# Of each alert: the fault in words, what makes it, the clients meanwhile, and what is repeated until it fires.
FAULTS = {
    "OffshootNoMetrics": ("all coordinators are gone", all_gone("coordinator"), {}, None),
    "OffshootNoTarget": ("all targets are gone", all_gone("target"), {}, None),
    "OffshootRequestsFail": ("all targets are gone, and requests wait a second for one", no_targets_and_no_patience, {"number": 4}, None),
    "OffshootRequestsRefused": (
        "six clients of a coordinator that runs one request and lets one wait",
        one("coordinator", "--max-sessions", "1", "--max-queued", "1"), {"number": 6}, None),
    "OffshootRequestsWait": (
        "six clients of a coordinator that runs one request", one("coordinator", "--max-sessions", "1"), {"number": 6}, None),
    "OffshootFirstTokenSlow": (
        "eight clients with texts of seconds, of a coordinator that runs one request",
        one("coordinator", "--max-sessions", "1"), {"number": 8, "max_tokens": 160}, None),
    "OffshootTargetsLost": (
        "targets are killed, one after the other", lambda cluster: None, {"number": 8, "max_tokens": 800}, kill_a_target),
    "OffshootNoDraft": ("all drafts are gone while requests run", all_gone("draft"), {"number": 3}, None),
    "OffshootWorkerRefused": ("a coordinator has the address of a worker", stranger, {}, None),
    "OffshootDiscoveryFails": (
        "the DNS server does not answer", each("coordinator", "--workers-dns", "targets:7001", "--dns-server", "127.0.0.1:9"), {}, None),
    "OffshootCacheFull": (
        "eight long texts on one target with a cache for some of them", one("target", "--kv-mib", "1"),
        {"number": 8, "max_tokens": 700}, None),
    "OffshootDraftsHungry": (
        "eight clients, and one draft whose steps take nearly as long as the target's", one("draft", "--step-ms", "30"),
        {"number": 8, "max_tokens": 200}, None),
    "OffshootStepsSlow": ("steps of the targets take 1.5 s", each("target", "--step-ms", "1500"), {"number": 2}, None),
}


def fire(name, cluster, prometheus, limit):
    """Makes the fault, waits for the alert, undoes it, and waits until the alert has ended."""
    what, begin, load, again = FAULTS[name]
    cluster.shape()
    until(f"{name} does not fire before its fault", lambda: name not in prometheus.firing(), limit)
    clients = Clients(cluster, **load) if load else None
    try:
        began = time.monotonic()
        begin(cluster)
        while name not in prometheus.firing():
            if again:
                again(cluster)
            if time.monotonic() - began > limit:
                raise TimeoutError(f"not within {limit} s; firing are {sorted(prometheus.firing())}")
            time.sleep(0.25)
        took = time.monotonic() - began
        others = prometheus.firing() - {name}
    finally:
        if clients:
            clients.stop()
        cluster.strangers.clear()
        cluster.shape()
        cluster.list_workers()
    until(f"{name} ends after its fault", lambda: name not in prometheus.firing(), limit)
    return f"| `{name}` | {what} | {took:.0f} | {', '.join(f'`{other}`' for other in sorted(others))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="alerts whose name contains it")
    parser.add_argument("binary", metavar="BINARY")
    parser.add_argument("prometheus", metavar="PROMETHEUS")
    arguments = parser.parse_args()
    alerts = [rule["alert"] for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    assert set(alerts) == set(FAULTS), f"alerts and faults differ: {set(alerts) ^ set(FAULTS)}"
    chosen = [name for name in alerts if not arguments.only or any(text in name for text in arguments.only)]
    failed = 0
    print("| alert | fault | fires after, s | others that fire |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(arguments.binary, Path(folder))
        cluster.list_workers()
        prometheus = Prometheus(arguments.prometheus, Path(folder))
        try:
            for name in chosen:
                try:
                    print(fire(name, cluster, prometheus, 120), flush=True)
                except (TimeoutError, RuntimeError) as error:
                    failed += 1
                    print(f"| `{name}` | {FAULTS[name][0]} | FAILED: {error} | |", flush=True)
        finally:
            cluster.clear()
            prometheus.process.terminate()
            prometheus.process.wait()
    print(f"\n{len(chosen) - failed} of {len(chosen)} alerts were fired by their faults, and ended after them")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
