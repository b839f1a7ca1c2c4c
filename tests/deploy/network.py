"""Runs the services of deploy/compose/compose.yaml as containers on a network whose names have several addresses.

One target, one coordinator and 1 -> 3 -> 1 drafts; a completion of one seed after each step, whose text must be the same.
Usage: network.py IMAGE        needs podman with netavark and aardvark-dns, and PyYAML
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

COMPOSE = Path(__file__).resolve().parents[2] / "deploy/compose/compose.yaml"
NETWORK = f"offshoot-test-{os.getpid()}"
PROMPT = "fn parse(text: &str) -> Option<u32> {"


def podman(*arguments, check=True):
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"podman {' '.join(arguments[:6])}: {done.stderr.strip()}")
    return done.stdout.strip()


class Services:
    def __init__(self, image):
        self.image = image
        self.services = yaml.safe_load(COMPOSE.read_text())["services"]
        self.running = {}

    def start(self, service):
        what = self.services[service]
        number = len(self.running.setdefault(service, []))
        name = f"{NETWORK}-{service}-{number}"
        options = ["--detach", "--name", name, "--network", NETWORK, "--network-alias", service]
        options += [f"--stop-timeout={what['stop_grace_period'].rstrip('s')}"]
        options += ["--read-only"] if what["read_only"] else []
        options += [f"--cap-drop={one}" for one in what["cap_drop"]]
        options += [f"--security-opt={one.replace(':true', '')}" for one in what["security_opt"]]
        options += [f"--env={key}={value}" for key, value in what["environment"].items()]
        podman("run", *options, self.image, *what["command"])
        self.running[service].append(name)

    def stop(self, service):
        """Stops one container as an orchestrator would, and says how it ended."""
        name = self.running[service].pop()
        podman("stop", name)
        return int(podman("inspect", "--format", "{{.State.ExitCode}}", name))

    def clean(self):
        for names in self.running.values():
            for name in names:
                podman("rm", "--force", "--time=0", name, check=False)

    def inside(self, *arguments):
        name = self.running["coordinator"][0]
        return podman("exec", name, "/usr/bin/offshoot", *arguments)

    def generate(self):
        return self.inside("generate", "--connect", "coordinator:7000", "--seed", "7", "--temperature", "0.8",
                           "--max-tokens", "32", PROMPT)

    def address(self, service):
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return podman("inspect", "--format", form, self.running[service][0])

    def page(self, path):
        with urllib.request.urlopen(f"http://{self.address('coordinator')}:9090{path}", timeout=5) as answer:
            return answer.read().decode()

    def drafts(self):
        """Drafts that the coordinator has admitted."""
        found = re.search(r'^offshoot_workers\{role="draft",state="ready"\} (\d+)', self.page("/metrics"), re.M)
        return int(found.group(1)) if found else 0


def until(what, check, limit=60):
    end = time.monotonic() + limit
    while True:
        try:
            if check():
                return
            why = "not yet"
        except OSError as error:
            why = error
        if time.monotonic() > end:
            raise RuntimeError(f"not within {limit} s: {what} ({why})")
        time.sleep(0.3)


def main():
    services = Services(sys.argv[1])
    podman("network", "create", NETWORK)
    texts = {}
    try:
        for service in ("target", "draft", "coordinator"):
            services.start(service)
        until("the coordinator is ready", lambda: services.page("/ready") == "ready\n")
        until("one draft", lambda: services.drafts() == 1)
        texts["1 draft"] = services.generate()
        services.start("draft")
        services.start("draft")
        until("three drafts", lambda: services.drafts() == 3)
        texts["3 drafts"] = services.generate()
        codes = [services.stop("draft"), services.stop("draft")]
        until("one draft again", lambda: services.drafts() == 1)
        texts["1 draft again"] = services.generate()
        codes += [services.stop("draft")]
        until("no draft", lambda: services.drafts() == 0)
        texts["no draft"] = services.generate()
        codes += [services.stop("coordinator"), services.stop("target")]
    except RuntimeError:
        for names in services.running.values():
            for name in names:
                print(podman("logs", "--tail", "5", name, check=False), file=sys.stderr)
        raise
    finally:
        services.clean()
        podman("network", "rm", "--force", NETWORK, check=False)
    if len(set(texts.values())) != 1 or not texts["1 draft"].strip():
        print(f"texts differ: {json.dumps(texts, indent=1)}")
        return 1
    if any(codes):
        print(f"containers did not end cleanly: {codes}")
        return 1
    print(f"{len(texts)} completions of one seed are equal, with 1, 3, 1 and no drafts; {len(codes)} containers drained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
