#!/usr/bin/env python3
"""Disturbs a cluster that KUBECONFIG names, under load, and prints what users notice.

  OFFSHOOT_IMAGE=... OFFSHOOT_LOAD_IMAGE=... tests/kubernetes/run.py [--only TEXT]... [--results FILE]

The two images are built by images.sh and have to be where the nodes find them. Everything happens in the namespace
`offshoot`, which is created, and deleted with --clean. Needs kubectl; the rows of helm need that too (HELM names it). Rows that the cluster cannot serve are skipped
and named. --results keeps figures from run to run, so that rows can be run one after the other.

Two rows need to be reached by pods: OFFSHOOT_TEST_ADDRESS is an address of this machine at which they do. The one of
EndpointSlices needs an image that was built with the feature endpointslice and, on clusters before 1.21, OFFSHOOT_CLUSTER_CA
(old_slices.py).
"""

import argparse
import base64
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import cluster
import hub
import old_slices
from cluster import Failed, Load, kubectl, run, say, settled, until

IMAGE = os.environ.get("OFFSHOOT_IMAGE", "")
LOAD_IMAGE = os.environ.get("OFFSHOOT_LOAD_IMAGE", "")
ADDRESS = os.environ.get("OFFSHOOT_TEST_ADDRESS", "")
CLUSTER_CA = os.environ.get("OFFSHOOT_CLUSTER_CA", "")
PROMETHEUS = os.environ.get("PROMETHEUS", "")
# Pods of each role while nothing else is said.
SHAPE = {"coordinator": 2, "target": 2, "qualifier": 1, "draft": 2}


class Skipped(Exception):
    """The cluster cannot serve a row, for the reason that it names."""


def shape(**changed):
    """Brings every role to its number of pods."""
    wanted = {**SHAPE, **changed}
    for role, number in wanted.items():
        cluster.replicas(role, number)
    for role in wanted:
        settled(role)


def deploy(overlay="nano", components=()):
    manifests = cluster.render(IMAGE, overlay, components)
    policy = os.environ.get("OFFSHOOT_PULL_POLICY")
    if policy:
        manifests = manifests.replace("        name: offshoot\n        ports:", f"        imagePullPolicy: {policy}\n        name: offshoot\n        ports:")
    cluster.apply(manifests)


def row_first_token():
    """apply, and the first token through the Service"""
    kubectl("delete", "namespace", cluster.NAMESPACE, "--ignore-not-found", "--timeout=120s")
    begun = time.monotonic()
    deploy()
    until("a completion through the Service", lambda: try_generate(), 240)
    took = time.monotonic() - begun
    for role in SHAPE:
        settled(role)
    first, again = cluster.first_token(), cluster.first_token()
    if not first.strip() or first != again:
        raise Failed(f"two completions of one seed differ: {first!r} {again!r}")
    return {"requests": 2, "failed": 0, "differing": 0, "interrupted": 0, "longest_gap_ms": None,
            "note": f"first token after {took:.0f} s"}


def try_generate():
    try:
        return cluster.first_token().strip()
    except Failed:
        return None


def under_load(event, **options):
    """The figures of a load during which `event` happens; its return value is the note."""
    load = Load(LOAD_IMAGE, **options)
    note = event()
    figures = load.finish()
    if note:
        figures["note"] = note
    return figures


def row_undisturbed():
    """nothing"""
    shape()
    return under_load(lambda: time.sleep(10))


def kill(role, **changed):
    def event():
        began = time.monotonic()
        name = cluster.kill(role)
        until(f"{name} is gone", lambda: name not in cluster.pods(role))
        settled(role)
        return f"all pods available again after {time.monotonic() - began:.0f} s"

    shape(**changed)
    return under_load(event)


def row_kill_draft():
    """a draft is killed"""
    return kill("draft")


def row_kill_qualifier():
    """the qualifier is killed"""
    return kill("qualifier")


def row_kill_target():
    """one of two targets is killed"""
    return kill("target")


def row_kill_coordinator():
    """one of two coordinators is killed; its clients resume"""
    return kill("coordinator")


def row_kill_only_target():
    """the only target is killed, and comes back as a new pod"""
    return kill("target", target=1)


def rollout(role):
    lowest = {"available": SHAPE[role]}

    def event():
        began = time.monotonic()
        kubectl("rollout", "restart", f"deployment/offshoot-{role}")

        def done():
            status = cluster.get(f"deployment/offshoot-{role}")
            now = status["status"].get("availableReplicas", 0)
            lowest["available"] = min(lowest["available"], now)
            new = status["status"].get("updatedReplicas", 0) == status["spec"]["replicas"] == now
            observed = status["status"].get("observedGeneration") == status["metadata"]["generation"]
            return observed and new and len(cluster.pods(role)) == SHAPE[role]

        until(f"the new revision of {role}", done, 400)
        return f"{time.monotonic() - began:.0f} s; at least {lowest['available']} of {SHAPE[role]} available"

    shape()
    figures = under_load(event)
    if lowest["available"] < SHAPE[role]:
        figures["note"] += " (FEWER THAN WANTED)"
    return figures


def row_rollout_draft():
    """rolling update of the drafts"""
    return rollout("draft")


def row_rollout_qualifier():
    """rolling update of the qualifier"""
    return rollout("qualifier")


def row_rollout_target():
    """rolling update of the targets"""
    return rollout("target")


def row_rollout_coordinator():
    """rolling update of the coordinators"""
    return rollout("coordinator")


def evict(role):
    def event():
        names = cluster.pods(role)
        allowed = [cluster.evict(name) for name in names]
        settled(role)
        return f"{sum(allowed)} evicted at once, {len(names) - sum(allowed)} refused by the budget"

    shape()
    # A budget counts pods that were ready for a while; the controller needs a moment to see them.
    until("the budget allows a disruption", lambda: cluster.get(
        "poddisruptionbudget", f"offshoot-{role}")["status"].get("disruptionsAllowed", 0) > 0)
    figures = under_load(event)
    return figures


def row_evict_draft():
    """drain of a node: eviction of all drafts"""
    return evict("draft")


def row_evict_qualifier():
    """drain of a node: eviction of the qualifier"""
    return evict("qualifier")


def row_evict_target():
    """drain of a node: eviction of all targets"""
    return evict("target")


def row_evict_coordinator():
    """drain of a node: eviction of all coordinators"""
    return evict("coordinator")


def row_no_drafts():
    """drafts scaled to zero, and back to two"""
    def event():
        cluster.replicas("draft", 0)
        until("no drafts", lambda: not cluster.pods("draft"))
        time.sleep(5)
        cluster.replicas("draft", 2)
        settled("draft")

    shape()
    return under_load(event)


def row_autoscaling():
    """autoscaling of drafts on the speculation signals: 1, 3, 1"""
    metric = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{cluster.NAMESPACE}/offshoot_draft_hunger_percent"
    if subprocess.run(["kubectl", "get", "--raw", metric], capture_output=True).returncode != 0:
        return {"skipped": "the cluster serves no external metrics of deploy/monitoring"}
    shape(draft=1)
    autoscalers = [one for one in cluster.render(IMAGE, components=["autoscaling"]).split("\n---\n")
                   if "kind: HorizontalPodAutoscaler" in one and "name: offshoot-draft" in one]
    # Windows of seconds instead of minutes; everything else as it is shipped.
    text = autoscalers[0].replace("stabilizationWindowSeconds: 300", "stabilizationWindowSeconds: 5")
    text = text.replace("stabilizationWindowSeconds: 15", "stabilizationWindowSeconds: 0").replace("periodSeconds: 60", "periodSeconds: 5")
    cluster.apply(text)
    wanted = lambda: cluster.get("deployment/offshoot-draft")["spec"]["replicas"]
    times = {}

    def event():
        began = time.monotonic()
        until("the autoscaler asks for three drafts", lambda: wanted() == 3, 240)
        times["up"] = time.monotonic() - began
        times["why"] = metrics()
        settled("draft")
        until("three drafts have sessions", lambda: len(cluster.pods("draft")) == 3)

    try:
        figures = under_load(event, clients=4)
        began = time.monotonic()
        until("the autoscaler asks for one draft", lambda: wanted() == 1, 300)
        until("two drafts are gone", lambda: len(cluster.pods("draft")) == 1)
        times["down"] = time.monotonic() - began
    finally:
        kubectl("delete", "horizontalpodautoscaler", "offshoot-draft", "--ignore-not-found")
    figures["note"] = f"three after {times['up']:.0f} s ({times['why']}), one again {times['down']:.0f} s after the load"
    return figures


def quantity(text):
    """A quantity of Kubernetes, such as 26403m, as a number."""
    return f"{float(text[:-1]) / 1000:.1f}" if text.endswith("m") else text


def metrics():
    """What the autoscaler saw last."""
    status = cluster.get("horizontalpodautoscaler/offshoot-draft")
    annotations = status["metadata"].get("annotations", {})
    old = annotations.get("autoscaling.alpha.kubernetes.io/current-metrics")
    current = json.loads(old) if old else status["status"].get("currentMetrics", [])
    found = []
    for one in current:
        external = one.get("external", {})
        name = external.get("metricName") or external.get("metric", {}).get("name", "?")
        now = external.get("current", {})
        value = external.get("currentValue") or now.get("value") or now.get("averageValue") \
            or external.get("currentAverageValue", "?")
        found.append(f"{name.removeprefix('offshoot_draft_').replace('_', ' ')} {quantity(value)}")
    return ", ".join(found)


def row_secrets():
    """new certificates in the Secrets of running pods (overlay mtls)"""
    offshoot = os.environ.get("OFFSHOOT", str(cluster.ROOT / "target/release/offshoot"))
    with tempfile.TemporaryDirectory() as folder:
        certificates(offshoot, folder)
        deploy("mtls")
        shape()
        load = Load(LOAD_IMAGE, secret="offshoot-client-tls")
        before = identities()
        certificates(offshoot, folder)
        began = time.monotonic()
        until("every pod has loaded its new certificate",
              lambda: all(count > before.get(name, 0) for name, count in identities().items()), 180)
        took = time.monotonic() - began
        restarts = [status["restartCount"] for pod in cluster.get("pods")["items"]
                    for status in pod["status"].get("containerStatuses", [])]
        # Connections that are made now use the new ones on both sides.
        cluster.kill("target")
        settled("target")
        figures = load.finish()
        figures["note"] = f"loaded by every pod {took:.0f} s after the change of the Secrets; {sum(restarts)} restarts; then a target is killed"
    deploy()
    shape()
    return figures


def release(action, name="offshoot", **changed):
    """Installs or upgrades a release with the chart's example for one node, synthetic workers, and what is changed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "values.json")
        file.write_text(json.dumps({**cluster.values(IMAGE), **changed}))
        # Server-side apply of old versions wants fields that have defaults; an upgrade goes on as the install did.
        old = ["--server-side=false"] if action == "install" and cluster.minor() < 22 else []
        return cluster.helm(action, *old, name, cluster.chart(folder), "--values",
                            str(cluster.ROOT / "deploy/chart/examples/one-node.yaml"), "--values", str(file),
                            "--wait", "--timeout", "5m", limit=330)


def tested(name):
    """The text of `helm test`."""
    cluster.helm("test", name, "--timeout", "2m")
    text = kubectl("logs", f"{name}-test")
    if not text.strip():
        raise Failed("the pod of helm test printed no text")
    return text


def revised(revision):
    """Values by which every pod of the release is replaced."""
    found = cluster.values(IMAGE)
    for role in SHAPE:
        found.setdefault(role, {})["podAnnotations"] = {"revision": str(revision)}
    return found


def row_helm_install():
    """helm install of the chart; `helm test`, a completion through the Service"""
    kubectl("delete", "namespace", cluster.NAMESPACE, "--ignore-not-found", "--timeout=120s")
    run("kubectl", "create", "namespace", cluster.NAMESPACE)
    began = time.monotonic()
    release("install")
    took = time.monotonic() - began
    for role in SHAPE:
        settled(role)
    began = time.monotonic()
    tested("offshoot")
    return {"requests": 1, "failed": 0, "differing": 0, "interrupted": 0, "longest_gap_ms": None,
            "note": f"all pods available after {took:.0f} s; the test took {time.monotonic() - began:.0f} s"}


def row_helm_refused():
    """values that are wrong: the install is refused, and the error names the value"""
    wrong = {"replicaz": {"draft": {"replicaz": 3}}, "target.gpu.count": {"target": {"gpu": {"count": 2}}},
             "/target/model": {"target": {"model": "s3://bucket"}}, "use stopDelay": {"draft": {"terminationGracePeriodSeconds": 5}},
             "image.repository": {"image": {"repository": ""}}}
    before = cluster.helm("history", "offshoot", "-o", "json")
    for named, values in wrong.items():
        try:
            release("upgrade", **values)
        except Failed as error:
            if named not in str(error):
                raise Failed(f"the error does not name {named}: {error}") from None
        else:
            raise Failed(f"these values were taken: {values}")
    if cluster.helm("history", "offshoot", "-o", "json") != before:
        raise Failed("a refused upgrade made a revision")
    return {"requests": 0, "failed": 0, "differing": 0, "interrupted": 0, "longest_gap_ms": None,
            "note": f"{len(wrong)} of {len(wrong)}"}


def replaced(change):
    """What clients notice while `change` replaces every pod of all roles."""
    lowest = dict(SHAPE)

    def event():
        began = time.monotonic()
        names = {role: set(cluster.pods(role)) for role in SHAPE}
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change)
            while not changing.done():
                for role in SHAPE:
                    now = cluster.get(f"deployment/offshoot-{role}")["status"].get("availableReplicas", 0)
                    lowest[role] = min(lowest[role], now)
                time.sleep(0.5)
            changing.result()
        for role in SHAPE:
            settled(role)
            if names[role] & set(cluster.pods(role)):
                raise Failed(f"pods of {role} were not replaced")
        least = ", ".join(f"{lowest[role]} of {SHAPE[role]} {role}s" for role in SHAPE)
        return f"every pod replaced, {time.monotonic() - began:.0f} s; at least {least} available"

    return under_load(event)


def row_helm_upgrade():
    """helm upgrade that replaces the pods of all roles at once"""
    return replaced(lambda: release("upgrade", **revised(2)))


def row_helm_rollback():
    """helm rollback to the revision before, of all roles at once"""
    return replaced(lambda: cluster.helm("rollback", "offshoot", "--wait", "--timeout", "5m", limit=330))


def row_helm_pairs():
    """another release in the same namespace: each coordinator knows the workers of its own alone; `helm test` of both"""
    few = cluster.values(IMAGE)
    for role in SHAPE:
        few.setdefault(role, {})["replicas"] = 1
    release("install", "offshoot-two", qualifier={"enabled": False}, **{role: few[role] for role in ("coordinator", "target", "draft")})
    try:
        counts = {}
        for name in ("offshoot", "offshoot-two"):
            tested(name)
            listed = kubectl("exec", f"deployment/{name}-coordinator", "--", "/usr/bin/offshoot", "top", "--once", "--connect",
                             f"{name}-coordinator:7000")
            own = {pod["status"]["podIP"] for pod in cluster.get("pods", "-l", f"app.kubernetes.io/instance={name}")["items"]}
            seen = set(re.findall(r"\b(\d+\.\d+\.\d+\.\d+):7001\b", listed))
            if not seen or not seen <= own:
                raise Failed(f"{name} has the workers {sorted(seen)}, its pods are {sorted(own)}")
            counts[name] = len(seen)
    finally:
        cluster.helm("uninstall", "offshoot-two", "--wait", check=False)
    return {"requests": 2, "failed": 0, "differing": 0, "interrupted": 0, "longest_gap_ms": None,
            "note": ", ".join(f"{count} workers of {name}" for name, count in counts.items())}


def row_helm_certificates():
    """helm install with certificates on every connection; `helm test`"""
    cluster.helm("uninstall", "offshoot", "--wait", check=False)
    with tempfile.TemporaryDirectory() as folder:
        certificates(os.environ.get("OFFSHOOT", str(cluster.ROOT / "target/release/offshoot")), folder)
    release("install", tls={"enabled": True})
    try:
        text = tested("offshoot")
    finally:
        cluster.helm("uninstall", "offshoot", "--wait", check=False)
    release("install")
    plain = tested("offshoot")
    return {"requests": 2, "failed": 0, "differing": int(text.split("\n")[0] != plain.split("\n")[0]), "interrupted": 0,
            "longest_gap_ms": None, "note": "the same text as without"}


def row_helm_hub():
    """models of hf://, which every pod fetches from a hub; `helm test`; then a target is killed, and the new one fetches again"""
    if not ADDRESS:
        return {"skipped": "OFFSHOOT_TEST_ADDRESS names no address at which pods reach this machine"}
    served = hub.Hub(cluster.ROOT / "models", ADDRESS)
    try:
        models = {role: {"model": f"hf://offshoot/{role}@main", "env": {}} for role in ("target", "qualifier", "draft")}
        real = {role: {"env": {}} for role in models}
        # The same text by real models, from the image and from the hub.
        release("upgrade", **real)
        # An old pod that drains would still answer.
        for role in SHAPE:
            settled(role)
        wanted = tested("offshoot").split("\n")[0]
        cluster.helm("uninstall", "offshoot", "--wait", check=False)
        began = time.monotonic()
        release("install", huggingFace={"endpoint": served.url}, **models)
        took, fetched = time.monotonic() - began, served.sent
        text = tested("offshoot").split("\n")[0]

        def event():
            name = cluster.kill("target")
            until(f"{name} is gone", lambda: name not in cluster.pods("target"))
            settled("target")

        figures = under_load(event, clients=1)
        if served.sent <= fetched:
            raise Failed("the new target has fetched nothing")
    finally:
        served.close()
        cluster.helm("uninstall", "offshoot", "--wait", check=False)
        release("install")
    if text != wanted:
        raise Failed(f"by models in the image {wanted!r}, by models of the hub {text!r}")
    figures["note"] = f"available after {took:.0f} s, with {fetched} files fetched; the text is that of models in the image"
    return figures


@contextlib.contextmanager
def slices():
    """Values by which coordinators watch EndpointSlices, and what stands in for the API server of an old cluster, if it has to."""
    if cluster.minor() >= 21:
        yield {"discovery": "endpointslice"}, None
        return
    if not ADDRESS or not CLUSTER_CA:
        raise Skipped("the cluster is older than 1.21, and OFFSHOOT_TEST_ADDRESS or OFFSHOOT_CLUSTER_CA is missing")
    server = old_slices.api_server(run("kubectl", "config", "view", "--raw", "-o", "json"))
    with tempfile.TemporaryDirectory() as folder:
        proxy = old_slices.OldSlices(folder, CLUSTER_CA, ADDRESS, server)
        variables = {"KUBERNETES_SERVICE_HOST": ADDRESS, "KUBERNETES_SERVICE_PORT": str(proxy.port)}
        try:
            yield {"discovery": "endpointslice", "coordinator": {"env": variables}}, proxy
        finally:
            proxy.stop()


def row_helm_discovery():
    """`helm upgrade` from DNS to EndpointSlices, and `helm rollback`"""
    with slices() as (values, _):
        def event():
            release("upgrade", **values)
            settled("coordinator")
            cluster.helm("rollback", "offshoot", "--wait", "--timeout", "5m", limit=330)
            settled("coordinator")

        release("upgrade")
        settled("coordinator")
        return under_load(event)


def row_helm_endpointslice():
    """workers by EndpointSlices: how soon a new draft is used; then the API server is away, and a draft is killed"""
    with slices() as (values, proxy):
        release("upgrade")
        by_name = followed()
        release("upgrade", **values)
        try:
            by_slices = followed()
            figures = under_load(lambda: without_api_server(proxy) if proxy else None)
        finally:
            release("upgrade")
    figures["note"] = f"used by every coordinator {spread(by_slices)} after it serves, with DNS {spread(by_name)}"
    if proxy:
        figures["note"] += "; without the API server nobody leaves, and the new draft is found when it is back"
    return figures


def followed(times=5):
    """Seconds from when a new draft serves until the last coordinator has it, for some drafts."""
    found = []
    for role in SHAPE:
        settled(role)
    for _ in range(times):
        before = set(cluster.pods("draft"))
        cluster.replicas("draft", SHAPE["draft"] + 1)
        name, = until("a new draft", lambda: set(cluster.pods("draft")) - before)
        settled("draft")
        address = cluster.get("pod", name)["status"]["podIP"] + ":7001"
        serves = moments(name, "worker ready")[0]
        last = max(moments(one, "a worker is ready", address)[-1] for one in cluster.pods("coordinator"))
        found.append(last - serves)
        cluster.replicas("draft", SHAPE["draft"])
        settled("draft")
    return found


def moments(pod, message, worker=None):
    """When a pod has logged a message, in seconds."""
    lines = (json.loads(line) for line in kubectl("logs", pod).splitlines() if line.startswith("{"))
    return [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines
            if line["message"] == message and worker in (None, line.get("worker"))]


def spread(seconds):
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def without_api_server(proxy):
    """A draft is killed while coordinators cannot ask; they keep the workers that they know, and find the new draft afterwards."""
    proxy.stop()
    name = cluster.kill("draft")
    until(f"{name} is gone", lambda: name not in cluster.pods("draft"))
    new = until("its successor has an address", lambda: [pod for pod in cluster.get(
        "pods", "-l", "app.kubernetes.io/component=draft")["items"] if pod["status"].get("podIP")][-1:])
    until("coordinators note that they cannot ask", lambda: all(
        moments(one, "a source of workers fails; what it said before stays") for one in cluster.pods("coordinator")))
    for one in cluster.pods("coordinator"):
        left = moments(one, "a worker is no longer listed")
        if left and time.time() - left[-1] < 5:
            raise Failed("a worker left although nobody said so")
    proxy.start()
    settled("draft")


def row_helm_autoscaling():
    """the chart's autoscalers, whose metrics are those of their release: drafts from one to three"""
    metric = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{cluster.NAMESPACE}/offshoot_draft_hunger_percent"
    selector = "?labelSelector=app_kubernetes_io_instance%3Doffshoot"
    if subprocess.run(["kubectl", "get", "--raw", metric + selector], capture_output=True).returncode != 0:
        return {"skipped": "the cluster serves no external metrics of deploy/monitoring by release"}
    release("upgrade", autoscaling={"enabled": True})
    wanted = lambda: cluster.get("deployment/offshoot-draft")["spec"]["replicas"]
    times = {}

    def event():
        began = time.monotonic()
        until("the autoscaler asks for three drafts", lambda: wanted() == 3, 240)
        times["up"], times["why"] = time.monotonic() - began, metrics()
        settled("draft")

    try:
        cluster.replicas("draft", 1)
        settled("draft")
        figures = under_load(event, clients=4)
        # A release that does not exist has no metrics, so nothing is asked of its autoscaler.
        other = json.loads(run("kubectl", "get", "--raw", metric + selector.replace("offshoot", "other")))["items"]
        if other:
            raise Failed(f"another release has these metrics: {other}")
    finally:
        release("upgrade", autoscaling={"enabled": False})
    figures["note"] = f"three after {times['up']:.0f} s ({times['why']})"
    return figures


def row_scale_to_zero():
    """no targets and drafts, as KEDA leaves an idle pair; requests come, and the chart's trigger calls for workers"""
    if not PROMETHEUS:
        return {"skipped": "PROMETHEUS names no Prometheus that scrapes the cluster"}
    trigger = zero_trigger()
    shape()
    until("nobody asks", lambda: asked(trigger) == 0)
    for role in ("target", "draft"):
        cluster.replicas(role, 0)
    until("no workers", lambda: not cluster.pods("target") and not cluster.pods("draft"))
    # A coordinator that has not seen a target refuses at first; the others let requests wait.
    cluster.kill("coordinator")
    kubectl("patch", "service", "offshoot-coordinator", "-p", '{"spec": {"publishNotReadyAddresses": true}}')
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(patient) for _ in range(2)]
            until("the trigger calls for workers", lambda: asked(trigger) > 0)
            called = time.monotonic() - began
            for role in ("target", "draft"):
                cluster.replicas(role, SHAPE[role])
            found = {text.result() for text in texts}
        took = time.monotonic() - began
        shape()
        found.add(cluster.first_token().strip())
    finally:
        kubectl("patch", "service", "offshoot-coordinator", "-p", '{"spec": {"publishNotReadyAddresses": false}}')
    return {"requests": 2, "failed": 0, "differing": len(found) - 1, "interrupted": 0, "longest_gap_ms": None,
            "note": f"called for after {called:.1f} s, both texts complete after {took:.0f} s"}


def zero_trigger():
    """The query by which the chart scales targets from zero."""
    with tempfile.TemporaryDirectory() as folder:
        text = run(os.environ.get("HELM", "helm"), "template", "small", cluster.chart(folder), "--namespace", cluster.NAMESPACE,
                   "--values", str(cluster.ROOT / "deploy/chart/examples/pair-small.yaml"), "--set", "image.repository=any")
    target = next(one for one in text.split("\n---\n") if "kind: ScaledObject" in one and "name: small-target" in one)
    query = re.search(r'query: "((?:[^"\\]|\\.)*)"', target)[1].replace('\\"', '"')
    # Prometheus of a test cluster may not keep the label of the release.
    return query.replace(',app_kubernetes_io_instance="small"', "")


def asked(query):
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{urllib.parse.urlencode({'query': query})}", timeout=10) as reply:
        result = json.load(reply)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def patient():
    """A completion by a client that comes again as long as it is refused."""
    return until("a completion", try_generate)


def certificates(offshoot, folder):
    """A certificate for each role, of one CA, as Secrets."""
    names = [f"offshoot-{role}" for role in cluster.ROLES]
    cluster.run(offshoot, "certs", "--out", folder, *(word for name in names for word in ("--name", name)))
    for role in (*cluster.ROLES, "client"):
        files = {"tls.crt": f"{role}.pem", "tls.key": f"{role}-key.pem", "ca.crt": "ca.pem"}
        data = {key: base64.b64encode(Path(folder, name).read_bytes()).decode() for key, name in files.items()}
        cluster.apply(json.dumps({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
            "metadata": {"name": f"offshoot-{role}-tls", "namespace": cluster.NAMESPACE}}))


def identities():
    """Of every pod, how often it says that it has loaded new certificates."""
    return {name: kubectl("logs", name).count("loaded a new TLS identity")
            for role in cluster.ROLES for name in cluster.pods(role)}


ROWS = {name.removeprefix("row_"): function for name, function in list(globals().items()) if name.startswith("row_")}


def table(results):
    lines = ["| what happens | requests | failed | interrupted | differing tokens | longest gap, ms | |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, function in ROWS.items():
        figures = results.get(name)
        if figures is None:
            continue
        what = function.__doc__
        if "skipped" in figures or "error" in figures:
            why = figures.get("skipped") or f"FAILED: {figures['error']}"
            lines.append(f"| {what} | | | | | | {'skipped: ' if 'skipped' in figures else ''}{why} |")
            continue
        gap = figures["longest_gap_ms"]
        lines.append(f"| {what} | {figures['requests']} | {figures['failed']} | {figures['interrupted']} | "
                     f"{figures['differing']} | {'' if gap is None else gap} | {figures.get('note') or ''} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose name contains it")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep figures here from run to run")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--clean", action="store_true", help="delete the namespace at the end")
    arguments = parser.parse_args()
    chosen = [name for name in ROWS if not arguments.only or any(text in name for text in arguments.only)]
    if arguments.list:
        print("\n".join(chosen))
        return 0
    if not IMAGE or not LOAD_IMAGE:
        parser.error("OFFSHOOT_IMAGE and OFFSHOOT_LOAD_IMAGE name the images; see images.sh")
    results = {}
    if arguments.results and arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    bad = 0
    for name in chosen:
        say(f"{name}: {ROWS[name].__doc__}")
        try:
            figures = ROWS[name]()
        except Skipped as why:
            figures = {"skipped": str(why)}
        except (Failed, subprocess.TimeoutExpired) as error:
            figures = {"error": str(error)}
        say(f"  {json.dumps(figures)}")
        bad += "error" in figures or figures.get("failed", 0) + figures.get("differing", 0) > 0
        results[name] = figures
        if arguments.results:
            arguments.results.write_text(json.dumps(results, indent=1))
    if arguments.clean:
        kubectl("delete", "namespace", cluster.NAMESPACE, "--wait=false")
    print(table(results))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
