"""What the rows of run.py do to a cluster, by kubectl."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy/kustomize"
NAMESPACE = "offshoot"
ROLES = ("coordinator", "target", "qualifier", "draft")
SERVICE = "offshoot-coordinator:7000"


class Failed(Exception):
    """A row cannot be completed, for the reason that it names."""


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def run(*command, stdin=None, check=True, limit=300):
    """Runs a command and returns what it printed."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=limit)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command[:8])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout if check else done


def kubectl(*arguments, **options):
    return run("kubectl", "-n", NAMESPACE, *arguments, **options)


def get(*arguments):
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def until(what, check, limit=180):
    """Repeats `check` until it returns something true, and returns that."""
    end = time.monotonic() + limit
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise Failed(f"not within {limit} s: {what}")
        time.sleep(0.5)


def minor():
    """The minor version of the server."""
    version = json.loads(run("kubectl", "version", "-o", "json"))
    return int("".join(c for c in version["serverVersion"]["minor"] if c.isdigit()))


def render(image, overlay="nano", components=()):
    """The manifests of an overlay with an image, for the version of this cluster."""
    name, _, tag = image.rpartition(":")
    parts = [ROOT / "tests/kubernetes/synthetic", *(KUSTOMIZE / "components" / one for one in components)]
    if minor() < 23:
        parts.append(ROOT / "tests/kubernetes/old-api")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        relative = [os.path.relpath(path, folder) for path in (KUSTOMIZE / "overlays" / overlay, *parts)]
        Path(folder, "kustomization.yaml").write_text(json.dumps({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": NAMESPACE,
            "resources": relative[:1], "components": relative[1:],
            "images": [{"name": "OFFSHOOT-IMAGE", "newName": name, "newTag": tag}],
        }))
        return run("kubectl", "kustomize", folder)


def chart(folder):
    """A copy of the chart for the version of this cluster: as it is, or with the API versions of its time."""
    copy = Path(folder, "chart")
    shutil.copytree(ROOT / "deploy/chart", copy)
    if minor() < 25:
        renamed = {"policy/v1\n": "policy/v1beta1\n", "autoscaling/v2\n": "autoscaling/v2beta2\n", '>=1.25.0-0': '>=1.20.0-0'}
        for file in (copy / "Chart.yaml", *copy.glob("templates/*.yaml")):
            text = file.read_text()
            for new, old in renamed.items():
                text = text.replace(new, old)
            file.write_text(text)
    return str(copy)


def values(image):
    """Values of the chart for synthetic workers, as the component synthetic of kustomize."""
    name, _, tag = image.rpartition(":")
    found = {"image": {"repository": name, "tag": tag, "pullPolicy": os.environ.get("OFFSHOOT_PULL_POLICY", "")}}
    for role, step in (("target", "40"), ("qualifier", "20"), ("draft", "15")):
        found[role] = {"env": {"OFFSHOOT_SYNTHETIC": "/usr/share/offshoot/models/profiles/nano.json", "OFFSHOOT_STEP_MS": step}}
    return found


def helm(*arguments, **options):
    return run(os.environ.get("HELM", "helm"), "--namespace", NAMESPACE, *arguments, **options)


def apply(manifests):
    return run("kubectl", "apply", "-f", "-", stdin=manifests)


def replicas(role, number):
    kubectl("scale", f"deployment/offshoot-{role}", f"--replicas={number}")


def settled(role, limit=300):
    """Waits until all pods of a role are of the newest revision and available, and those of older ones gone."""
    kubectl("rollout", "status", f"deployment/offshoot-{role}", f"--timeout={limit}s", limit=limit + 10)

    def gone():
        wanted = get(f"deployment/offshoot-{role}")["spec"]["replicas"]
        return len(pods(role)) == wanted

    until(f"old pods of {role} are gone", gone, limit)


def pods(role):
    """Names of the pods of a role, those that end included."""
    found = get("pods", "-l", f"app.kubernetes.io/component={role}")["items"]
    return sorted(pod["metadata"]["name"] for pod in found)


def kill(role):
    """Kills the first pod of a role without grace, and returns its name."""
    name = pods(role)[0]
    kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
    return name


def evict(name):
    """Asks for the eviction of a pod; whether its budget allows it."""
    version = "policy/v1" if minor() >= 22 else "policy/v1beta1"
    body = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
    done = run("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(body), check=False)
    refused = "disruption budget" in done.stderr or "TooManyRequests" in done.stderr
    if done.returncode != 0 and not refused:
        raise Failed(f"eviction of {name}: {done.stderr.strip()}")
    return done.returncode == 0


def first_token(prompt="fn main() {"):
    """A completion through the Service, from inside the cluster with the product's own client."""
    return kubectl("exec", "deployment/offshoot-coordinator", "--", "/usr/bin/offshoot", "generate", "--connect",
                   SERVICE, "--max-tokens", "24", "--seed", "7", prompt)


class Load:
    """A pod whose clients check every token; see tests/e2e/src/bin/load.rs."""

    def __init__(self, image, clients=3, secret=None, max_tokens=64):
        self.pull = os.environ.get("OFFSHOOT_PULL_POLICY", "IfNotPresent")
        kubectl("delete", "pod", "load", "--ignore-not-found", "--grace-period=1")
        arguments = ["run", "--connect", SERVICE, "--until", "/load/stop", "--clients", str(clients),
                     "--prompts", "3", "--max-tokens", str(max_tokens)]
        volumes, mounts = [{"name": "load", "emptyDir": {}}], [{"name": "load", "mountPath": "/load"}]
        if secret:
            volumes.append({"name": "tls", "secret": {"secretName": secret}})
            mounts.append({"name": "tls", "mountPath": "/tls", "readOnly": True})
            arguments += ["--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key", "--tls-ca", "/tls/ca.crt"]
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "load", "namespace": NAMESPACE},
            "spec": {
                "restartPolicy": "Never", "enableServiceLinks": False, "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532,
                                    "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": volumes,
                "containers": [{
                    "name": "load", "image": image, "imagePullPolicy": self.pull, "args": arguments,
                    "volumeMounts": mounts,
                    "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                        "capabilities": {"drop": ["ALL"]}},
                }],
            },
        }
        apply(json.dumps(pod))
        until("the load runs", self.is_ready)
        time.sleep(3)

    @staticmethod
    def logs():
        return kubectl("logs", "load", check=False).stdout

    def is_ready(self):
        phase = get("pod", "load")["status"].get("phase")
        if phase in ("Failed", "Succeeded"):
            raise Failed(f"the load ended: {self.logs()}")
        return "ready" in self.logs().splitlines()

    def finish(self, settle=5):
        """Lets the load run on for a moment, stops it, and returns its figures."""
        time.sleep(settle)
        kubectl("exec", "load", "--", "/usr/bin/load", "stop", "/load/stop")
        until("the load has ended", lambda: get("pod", "load")["status"].get("phase") in ("Failed", "Succeeded"))
        lines = self.logs().splitlines()
        try:
            return json.loads(lines[-1])
        except (IndexError, ValueError):
            raise Failed(f"the load gave no figures: {lines[-5:]}") from None
