#!/usr/bin/env python3
"""Fires every alert of deploy/monitoring once, by the fault that it is for, on a cluster that KUBECONFIG names.

  OFFSHOOT_IMAGE=... OFFSHOOT_LOAD_IMAGE=... PROMETHEUS=http://... tests/kubernetes/alerts.py [--only TEXT]... [--results FILE]
  tests/kubernetes/alerts.py --rules FOLDER

Prometheus has to scrape the pods each second or two and to have the rules that --rules writes: those of deploy/monitoring with
their times divided by 15, so that nobody has to wait. What they compare is the same. The workers are synthetic. The namespace
`offshoot` is deleted first.
"""

import argparse
import json
import os
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

import cluster
from cluster import Failed, Load, kubectl, say, settled, until
from run import IMAGE, LOAD_IMAGE, SHAPE, deploy, shape

PROMETHEUS = os.environ.get("PROMETHEUS", "http://127.0.0.1:9090")
MONITORING = cluster.ROOT / "deploy/monitoring"
QUICKER = 15


def quick(text):
    """Rules with shorter times: ranges of six seconds at least, and no alert waits less than four."""
    def seconds(match):
        number, unit = int(match[2]), match[3]
        return f"{match[1]}{max(6, number * (60 if unit == 'm' else 1) // QUICKER)}s{match[4]}"

    text = re.sub(r"(\[)(\d+)([ms])(\])", seconds, text)
    return re.sub(r"(for: )(\d+)([ms])()", seconds, text)


def write_rules(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rules.yaml", "alerts.yaml"):
        (folder / name).write_text(quick((MONITORING / name).read_text()).replace("interval: 5s", "interval: 1s"))


def ask(path, **query):
    url = f"{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)["data"]


def firing():
    return {one["labels"]["alertname"]: one for one in ask("alerts")["alerts"] if one["state"] == "firing"}


def variables(role, **settings):
    """Sets variables of a role's pods, or removes those that are None, and waits until the pods are there."""
    words = [f"{name}={value}" if value is not None else f"{name}-" for name, value in settings.items()]
    kubectl("set", "env", f"deployment/offshoot-{role}", *words)
    settled(role)


class Fault:
    """What is done to the cluster, under which load, and how it is undone."""

    def __init__(self, what, begin, end, again=None, **load):
        self.what, self.begin, self.end, self.again, self.load = what, begin, end, again, load


def restored(role):
    return lambda: (cluster.replicas(role, SHAPE[role]), settled(role))


def gone(role):
    return lambda: cluster.replicas(role, 0)


def small(**settings):
    """One coordinator with these variables."""
    def begin():
        cluster.replicas("coordinator", 1)
        variables("coordinator", **settings)

    return begin


def large(*names):
    def end():
        variables("coordinator", **{name: None for name in names})
        restored("coordinator")()

    return end


STRANGER = {
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {"name": "stranger", "namespace": cluster.NAMESPACE,
                 "labels": {"app.kubernetes.io/name": "offshoot", "app.kubernetes.io/component": "draft"}},
    "spec": {
        "terminationGracePeriodSeconds": 1, "enableServiceLinks": False, "automountServiceAccountToken": False,
        "containers": [{
            "name": "offshoot", "image": IMAGE, "imagePullPolicy": os.environ.get("OFFSHOOT_PULL_POLICY", "IfNotPresent"),
            "args": ["coordinator", "--tokenizer=/usr/share/offshoot/models/target", "--host=0.0.0.0", "--port=7001",
                     "--allow-plaintext-bind"]}]},
}

FAULTS = {
    "OffshootNoMetrics": Fault("all coordinators are gone", gone("coordinator"), restored("coordinator")),
    "OffshootNoTarget": Fault("all targets are gone", gone("target"), restored("target")),
    "OffshootRequestsFail": Fault(
        "all targets are gone, and requests wait 3 s for one",
        lambda: (small(OFFSHOOT_FAILOVER_WAIT="3")(), cluster.replicas("target", 0)),
        lambda: (restored("target")(), variables("coordinator", OFFSHOOT_FAILOVER_WAIT="60"), restored("coordinator")()),
        clients=4),
    "OffshootRequestsRefused": Fault(
        "six clients of a coordinator that runs one request and lets one wait",
        small(OFFSHOOT_MAX_SESSIONS="1", OFFSHOOT_MAX_QUEUED="1"), large("OFFSHOOT_MAX_SESSIONS", "OFFSHOOT_MAX_QUEUED"), clients=6),
    "OffshootRequestsWait": Fault(
        "six clients of a coordinator that runs one request", small(OFFSHOOT_MAX_SESSIONS="1"), large("OFFSHOOT_MAX_SESSIONS"),
        clients=6),
    "OffshootFirstTokenSlow": Fault(
        "eight clients with long texts, of a coordinator that runs one request", small(OFFSHOOT_MAX_SESSIONS="1"),
        large("OFFSHOOT_MAX_SESSIONS"), clients=8, max_tokens=160),
    "OffshootTargetsLost": Fault(
        "targets are killed, one after the other", lambda: None, restored("target"),
        again=lambda: (cluster.kill("target"), time.sleep(4)), clients=8, max_tokens=400),
    "OffshootNoDraft": Fault("all drafts are gone, under load", gone("draft"), restored("draft"), clients=3),
    "OffshootWorkerRefused": Fault(
        "a process that is no worker has the address of a draft", lambda: cluster.apply(json.dumps(STRANGER)),
        lambda: kubectl("delete", "pod", "stranger", "--wait=true")),
    "OffshootDiscoveryFails": Fault(
        "the DNS server does not answer", small(OFFSHOOT_DNS_SERVER="10.96.255.254:53"), large("OFFSHOOT_DNS_SERVER")),
    "OffshootCacheFull": Fault(
        "eight long texts on one target with a cache for three of them",
        lambda: (cluster.replicas("target", 1), variables("target", OFFSHOOT_KV_MIB="1")),
        lambda: (variables("target", OFFSHOOT_KV_MIB="64"), restored("target")()), clients=8, max_tokens=600),
    "OffshootDraftsHungry": Fault(
        "one draft whose steps take as long as four of the target",
        lambda: (cluster.replicas("draft", 1), variables("draft", OFFSHOOT_STEP_MS="160")),
        lambda: (variables("draft", OFFSHOOT_STEP_MS="15"), restored("draft")()), clients=4),
    "OffshootStepsSlow": Fault(
        "steps of the targets take 1.5 s", lambda: variables("target", OFFSHOOT_STEP_MS="1500"),
        lambda: variables("target", OFFSHOOT_STEP_MS="40"), clients=2),
}


def fire(name, limit):
    """Makes the fault, waits for the alert, undoes it, and waits until the alert has ended."""
    fault = FAULTS[name]
    shape()
    until(f"{name} does not fire before its fault", lambda: name not in firing())
    load = Load(LOAD_IMAGE, **fault.load) if fault.load else None
    began = time.monotonic()
    fault.begin()
    while name not in firing():
        if fault.again:
            fault.again()
        if time.monotonic() - began > limit:
            raise Failed(f"it does not fire within {limit} s; firing are {sorted(firing())}")
        time.sleep(0.5)
    took = time.monotonic() - began
    others = sorted(set(firing()) - {name})
    fault.end()
    if load:
        kubectl("delete", "pod", "load", "--grace-period=1")
    until(f"{name} has ended", lambda: name not in firing(), limit)
    return {"fault": fault.what, "fired_after_s": round(took), "too": others}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="alerts whose name contains it")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep figures here from run to run")
    parser.add_argument("--rules", type=Path, metavar="FOLDER", help="write the quicker rules there, and end")
    arguments = parser.parse_args()
    alerts = [rule["alert"] for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    missing = set(alerts) ^ set(FAULTS)
    if missing:
        parser.error(f"alerts and faults differ: {sorted(missing)}")
    if arguments.rules:
        write_rules(arguments.rules)
        return 0
    results = {}
    if arguments.results and arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    kubectl("delete", "namespace", cluster.NAMESPACE, "--ignore-not-found", "--timeout=120s")
    deploy()
    bad = 0
    for name in alerts:
        if arguments.only and not any(text in name for text in arguments.only):
            continue
        say(f"{name}: {FAULTS[name].what}")
        try:
            results[name] = fire(name, 240)
        except Failed as error:
            results[name] = {"fault": FAULTS[name].what, "error": str(error)}
            bad += 1
        say(f"  {json.dumps(results[name])}")
        if arguments.results:
            arguments.results.write_text(json.dumps(results, indent=1))
    print("| alert | fault | fired after, s | others that fired |\n| --- | --- | --- | --- |")
    for name, found in results.items():
        print(f"| `{name}` | {found['fault']} | {found.get('fired_after_s') or found.get('error')} | {', '.join(found.get('too', []))} |")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
