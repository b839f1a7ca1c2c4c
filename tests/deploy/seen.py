"""Every expression of the dashboard, the alerts and the rules resolves against the metrics of a running cluster.

Starts `offshoot up` with synthetic models, asks it for texts, and reads /metrics of every process. Each selector of an expression
then has to name a metric that is there, labels that this metric has, and values that these labels have. With promtool the
expressions are parsed as well.

Usage: seen.py BINARY PROMTOOL FILE...     PROMTOOL may be empty; the files have ScaledObjects, whose queries are expressions too
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
# Labels that Prometheus adds when it scrapes a pod.
ADDED = {"namespace", "pod", "app_kubernetes_io_instance"}
SELECTOR = re.compile(r'([a-zA-Z_:][\w:]*)(\{[^}]*\})?')
MATCHER = re.compile(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"')


class Cluster:
    """`offshoot up` on ports that it picks, with its admin ports."""

    def __init__(self, binary):
        self.log = tempfile.NamedTemporaryFile("w")
        command = [binary, "up", "--synthetic", "nano", "--models", str(ROOT / "models"), "--admin", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)

    def said(self):
        return Path(self.log.name).read_text()

    def addresses(self):
        """The coordinator's address, and the admin ports of all processes, once the cluster says that it is ready."""
        end = time.monotonic() + 120
        while "ready; try" not in self.said():
            assert self.process.poll() is None and time.monotonic() < end, f"no cluster: {self.said()}"
            time.sleep(0.2)
        lines = [line.split() for line in self.said().splitlines() if " admin=" in line]
        coordinator = next(words[1] for words in lines if words[0] == "coordinator")
        return coordinator, [words[-1].removeprefix("admin=") for words in lines]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


def expositions(admins):
    """Of each metric, the sets of labels that it was seen with, and of each label the values."""
    seen = {}
    for admin in admins:
        with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as reply:
            for line in reply.read().decode().splitlines():
                if line and not line.startswith("#"):
                    match = re.match(r'([a-zA-Z_:][\w:]*)(?:\{(.*)\})? \S+', line)
                    labels = seen.setdefault(match.group(1), {})
                    for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match.group(2) or ""):
                        labels.setdefault(label, set()).add(value)
    return seen


def problems(expression, seen):
    """What of an expression would find nothing."""
    bare = re.sub(r'(by|on|without|ignoring)\s*\([^)]*\)', " ", expression)
    count = 0
    for name, matchers in SELECTOR.findall(re.sub(r'\[[^\]]*\]', "", bare)):
        if not name.startswith(("offshoot", "vllm:", "gen_ai_")):
            continue
        count += 1
        if name not in seen:
            yield f"there is no metric {name}"
            continue
        for label, operator, value in MATCHER.findall(matchers):
            values = seen[name].get(label, set())
            if label in ADDED:
                continue
            if not values:
                yield f"{name} has no label {label}"
            elif operator in ("=", "=~"):
                yield from (f"{name} has no {label} {one}" for one in value.split("|") if one not in values)
    if not count:
        yield "it reads no metric"
    for grouping in re.findall(r'by\s*\(([^)]*)\)', expression):
        known = set().union(*seen.values()) | ADDED
        for label in filter(None, (label.strip() for label in grouping.split(","))):
            if label not in known:
                yield f"it groups by {label}, which no metric has"


def expressions(files):
    """Every expression that is shipped, with where it stands."""
    for file in files:
        for one in filter(None, yaml.safe_load_all(Path(file).read_text())):
            for trigger in one["spec"]["triggers"] if one["kind"] == "ScaledObject" else []:
                yield f"{Path(file).name}, {one['metadata']['name']}", trigger["metadata"]["query"]
    for file in sorted((MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.name}, {panel['title']}", target["expr"].replace("$__rate_interval", "1m")
    for name in ("rules.yaml", "alerts.yaml"):
        for group in yaml.safe_load((MONITORING / name).read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{name}, {rule.get('alert') or rule['record']}", rule["expr"]


def recorded():
    groups = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return {rule["record"]: {} for group in groups for rule in group["rules"]}


def check_runbook():
    alerts = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    entries = set(re.findall(r'^## (\w+)$', (ROOT / "deploy/runbook.md").read_text(), re.MULTILINE))
    names = {rule["alert"] for rule in alerts}
    assert names == entries, f"alerts and entries of the runbook differ: {names ^ entries}"
    for rule in alerts:
        assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}"), rule
        assert rule["labels"]["severity"] in ("page", "ticket"), rule
    tested = (MONITORING / "alerts-test.yaml").read_text()
    assert all(f'alertname="{name}"' in tested for name in names), "an alert without a test"
    return len(names)


def check_queries_parse(promtool, files):
    """Expressions that promtool does not read where they stand, as rules."""
    rules = [{"record": f"check:{number}:a", "expr": expression} for number, (_, expression) in enumerate(expressions(files))]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "check", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run([promtool, "check", "rules", file.name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def main():
    binary, promtool, *files = sys.argv[1:]
    alerts = check_runbook()
    if promtool:
        check_queries_parse(promtool, files)
    cluster = Cluster(binary)
    try:
        address, admins = cluster.addresses()
        for prompt in ("fn main() {", "struct Point"):
            done = subprocess.run([binary, "generate", "--connect", address, "--max-tokens", "32", prompt],
                                  capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        seen = expositions(admins)
    finally:
        cluster.stop()
    seen.update(recorded())
    found, count = [], 0
    for where, expression in expressions(files):
        found += [f"{where}: {problem}" for problem in problems(expression, seen)]
        count += 1
    # The check itself finds what is wrong.
    for wrong in ('rate(offshoot_nothing_total[1m])', 'offshoot_workers{rolle="target"}', 'sum by (rolle) (offshoot_workers)',
                  'offshoot_workers{role="nobody"}', 'vector(1)'):
        assert list(problems(wrong, seen)), wrong
    assert not found, "\n".join(found)
    print(f"{count} expressions of dashboard, rules, {alerts} alerts and autoscalers against {len(seen)} metrics")


if __name__ == "__main__":
    main()
