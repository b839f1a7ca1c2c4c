"""Checks of deploy/chart, by `helm template`: what values make of it, and that kustomize makes the same.

Usage: chart.py HELM KUBECTL OUT      OUT gets each example rendered, objects of Kubernetes apart from those of others
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import manifests

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/chart"
EXAMPLES = CHART / "examples"
KUSTOMIZE = ROOT / "deploy/kustomize"
IMAGE = {"image": {"repository": "registry.example/offshoot", "tag": "0.1.0"}}
# The least that a release needs.
LEAST = {**IMAGE, "target": {"model": "/models/target"}, "draft": {"model": "/models/draft"}}
INSTANCE = "app.kubernetes.io/instance"
# Groups whose objects the schemas of Kubernetes do not have.
FOREIGN = ("cert-manager.io/", "keda.sh/", "monitoring.coreos.com/", "disaggregatedset.x-k8s.io/")


class Helm:
    def __init__(self, program):
        self.program = program

    def run(self, *files, release="offshoot", namespace="offshoot", values=None):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as own:
            json.dump(values or {}, own)
            own.flush()
            words = [self.program, "template", release, str(CHART), "--namespace", namespace]
            for file in (*files, own.name):
                words += ["--values", str(file)]
            return subprocess.run(words, capture_output=True, text=True)

    def render(self, *files, **options):
        done = self.run(*files, **options)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def refusal(self, values):
        """What helm says to values that it has to refuse."""
        done = self.run(values=merge(LEAST, values))
        assert done.returncode != 0, f"these values are taken: {values}"
        return done.stderr


def merge(one, other):
    """Maps as helm merges values; the second counts more."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return {key: merge(one[key], other[key]) if key in one and key in other else (other if key in other else one)[key]
            for key in {**one, **other}}


def find(objects, kind, name):
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}: {[(one['kind'], one['metadata']['name']) for one in objects]}"
    return found[0]


def pod(objects, role, name="offshoot"):
    return find(objects, "Deployment", f"{name}-{role}")["spec"]["template"]["spec"]


def environment(objects, role, name="offshoot"):
    return manifests.environment(pod(objects, role, name)["containers"][0])


# --- the same by kustomize -----------------------------------------------------------------------------------------------

def essential(objects):
    """What has to be the same whichever tool made it, by kind and name."""
    found = {}
    for one in objects:
        one = json.loads(json.dumps(one))
        if one["kind"] in ("Namespace", "Pod"):
            continue
        strip(one)
        spec = one.get("spec") or {key: one[key] for key in one if key not in ("apiVersion", "kind", "metadata")}
        if one["kind"] == "Deployment":
            for container in spec["template"]["spec"]["containers"]:
                container["env"] = manifests.environment(container)
                container["image"] = container["image"].rpartition(":")[0]
            spec["template"]["spec"].get("volumes", []).sort(key=lambda volume: volume["name"])
        found[one["kind"], one["metadata"]["name"]] = spec
    return found


def strip(value):
    """Without the label of a release, and the selectors of metrics that consist of it."""
    if isinstance(value, list):
        for one in value:
            strip(one)
    elif isinstance(value, dict):
        value.pop(INSTANCE, None)
        if value.get("selector") == {"matchLabels": {"app_kubernetes_io_instance": "offshoot"}}:
            del value["selector"]
        if isinstance(value.get("query"), str):
            value["query"] = value["query"].replace(',app_kubernetes_io_instance="offshoot"', "")
        for one in value.values():
            strip(one)


def check_kustomize(helm, kubectl):
    keda = {"autoscaling": {"enabled": True, "kind": "ScaledObject", "keda": {"serverAddress": "http://prometheus.monitoring:9090"}}}
    pairs = [("nano", [], "one-node.yaml", {}), ("gpu", [], "gpu.yaml", {}), ("mtls", [], "one-node.yaml", {"tls": {"enabled": True}}),
             ("nano", ["endpointslice"], "one-node.yaml", {"discovery": "endpointslice"}),
             ("nano", ["autoscaling"], "one-node.yaml", {"autoscaling": {"enabled": True}}), ("nano", ["keda"], "one-node.yaml", keda)]
    compared = 0
    for overlay, components, example, values in pairs:
        rendered = kustomize(kubectl, overlay, components).replace("image: OFFSHOOT-IMAGE", "image: registry.example/offshoot:0.1.0")
        theirs = essential(one for one in yaml.safe_load_all(rendered) if one)
        ours = essential(helm.render(EXAMPLES / example, values=merge(IMAGE, values)))
        assert ours.keys() == theirs.keys(), (overlay, ours.keys() ^ theirs.keys())
        for key, spec in ours.items():
            difference = "\n".join(differences(spec, theirs[key], ""))
            assert not difference, f"overlay {overlay}, {key}, chart and kustomize:\n{difference}"
            compared += 1
    return f"{compared} objects are the same by kustomize"


def kustomize(kubectl, overlay, components):
    """An overlay with components that it does not have."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.relpath(KUSTOMIZE / path, folder) for path in (f"overlays/{overlay}", *(f"components/{one}" for one in components))]
        Path(folder, "kustomization.yaml").write_text(json.dumps(
            {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": paths[:1], "components": paths[1:]}))
        done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def differences(one, other, path):
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other)):
            yield from differences(left, right, f"{path}[{number}]")
    elif one != other:
        yield f"  {path}: {one!r}, {other!r}"


# --- values that are refused ---------------------------------------------------------------------------------------------

REFUSED = [
    ({"targt": {}}, "targt"),
    ({"target": {"replicaz": 3}}, "replicaz"),
    ({"target": {"replicas": "many"}}, "/target/replicas"),
    ({"target": {"replicas": -1}}, "/target/replicas"),
    ({"target": {"model": "s3://bucket/model"}}, "/target/model"),
    ({"target": {"model": ""}}, "target.model"),
    ({"draft": {"model": ""}}, "draft.model"),
    ({"qualifier": {"enabled": True}}, "qualifier.model"),
    ({"target": {"device": "gpu0"}}, "/target/device"),
    ({"target": {"gpu": {"count": 2}}}, "target.gpu.count"),
    ({"target": {"gpu": {"product": ["A"]}}}, "product"),
    ({"target": {"gpu": {"count": 1, "products": ["A"]}, "affinity": {"podAffinity": {}}}}, "target.gpu.products"),
    ({"target": {"resources": {"limit": {}}}}, "limit"),
    ({"target": {"extraArgs": ["max-num-seqs=3"]}}, "/target/extraArgs/0"),
    ({"target": {"env": {"not a name": "x"}}}, "not a name"),
    ({"target": {"model": "hf://name"}}, "/target/model"),
    ({"image": {"repository": ""}}, "image.repository"),
    ({"image": {"digest": "sha256:12"}}, "/image/digest"),
    ({"fullnameOverride": "Not_A_Name"}, "fullnameOverride"),
    ({"tls": {"certManager": {"enabled": True}}}, "tls.enabled"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuer.name"),
    ({"tracing": {"endpoint": "https://collector:4317"}}, "/tracing/endpoint"),
    ({"autoscaling": {"enabled": True, "kind": "ScaledObject"}}, "autoscaling.keda.serverAddress"),
    ({"autoscaling": {"enabled": True, "draft": {"min": 5, "max": 2}}}, "autoscaling.draft.min"),
    ({"autoscaling": {"keda": {"scaleToZero": True}}}, "autoscaling.keda.scaleToZero"),
    ({"autoscaling": {"enabled": True}, "workload": {"kind": "DisaggregatedSet"}}, "autoscaling.enabled"),
    ({"autoscaling": {"enabled": True}, "draft": {"enabled": False}}, "autoscaling.enabled"),
    ({"workload": {"kind": "StatefulSet"}}, "/workload/kind"),
    ({"discovery": "consul"}, "/discovery"),
    ({"coordinator": {"extraArgs": ["--workers-endpointslice=a"]}}, "use discovery"),
    ({"coordinator": {"env": {"OFFSHOOT_WORKERS_DNS": "a:1"}}}, "use discovery"),
    ({"monitoring": {"monitor": "podMonitor"}}, "/monitoring/monitor"),
    # What is computed or has another name: what to use instead.
    ({"replicaCount": 3}, "target.replicas"),
    ({"serviceAccount": {"create": True}}, "no account"),
    ({"target": {"replicaCount": 3}}, "use replicas"),
    ({"target": {"terminationGracePeriodSeconds": 30}}, "use stopDelay and drainGrace"),
    ({"draft": {"args": ["--device=cpu"]}}, "use extraArgs"),
    ({"target": {"extraArgs": ["--drain-grace-s=300"]}}, "use drainGrace"),
    ({"draft": {"extraArgs": ["--device=cpu"]}}, "use device"),
    ({"coordinator": {"extraArgs": ["--tokenizer=/x"]}}, "use coordinator.tokenizer"),
    ({"draft": {"env": {"OFFSHOOT_DRAIN_GRACE": "600"}}}, "use drainGrace"),
    ({"target": {"env": {"OFFSHOOT_KV_MIB": "600"}}}, "use kvMib"),
]


def check_refused(helm):
    for values, named in REFUSED:
        said = helm.refusal(values)
        assert named in said, f"{values}: the error does not name {named}: {said}"
    return f"{len(REFUSED)} wrong values are refused by name"


# --- what values make of it ----------------------------------------------------------------------------------------------

def check_values(helm):
    def render(values, **options):
        return helm.render(values=merge(LEAST, values), **options)

    plain = render({})
    assert environment(plain, "coordinator")["OFFSHOOT_WORKERS_DNS"] == "offshoot-target:7001,offshoot-draft:7001"
    assert environment(plain, "coordinator")["OFFSHOOT_TOKENIZER"] == "/models/target"
    assert not any(one["kind"] == "HorizontalPodAutoscaler" for one in plain)

    # Discovery by the API server: an account for coordinators alone, which may do nothing else.
    objects = helm.render(EXAMPLES / "one-node.yaml", release="pair", values=merge(IMAGE, {"discovery": "endpointslice"}))
    findings = list(manifests.check(objects))
    assert not findings, findings
    found = environment(objects, "coordinator", "pair-offshoot")
    assert "OFFSHOOT_WORKERS_DNS" not in found
    assert found["OFFSHOOT_WORKERS_ENDPOINTSLICE"] == ",".join(f"pair-offshoot-{role}:grpc" for role in ("target", "qualifier", "draft"))
    assert pod(objects, "coordinator", "pair-offshoot")["serviceAccountName"] == "pair-offshoot-coordinator"
    assert find(objects, "RoleBinding", "pair-offshoot-coordinator")["subjects"][0]["namespace"] == "offshoot"
    ways = find(objects, "NetworkPolicy", "pair-offshoot-coordinators")["spec"]["egress"]
    assert {"ports": [{"port": 443}, {"port": 6443}]} in ways, ways
    for spoiled in ({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}, {"kind": "ClusterRole"}):
        wrong = [{**one, **spoiled} if one["kind"] == "Role" else one for one in objects]
        assert list(manifests.check(wrong)), spoiled

    # The grace period follows from what it has room for.
    for role in ("coordinator", "target", "draft"):
        longer = pod(render({role: {"stopDelay": 7, "drainGrace": 600}}), role)
        assert longer["terminationGracePeriodSeconds"] == 622, longer["terminationGracePeriodSeconds"]

    # Two releases in one namespace have no name, label or address in common.
    pairs = [helm.render(EXAMPLES / f"pair-{size}.yaml", release=size, values=IMAGE) for size in ("large", "small")]
    names = [{(one["kind"], one["metadata"]["name"]) for one in objects} for objects in pairs]
    assert not names[0] & names[1], names[0] & names[1]
    for size, objects in zip(("large", "small"), pairs):
        for one in objects:
            if one["kind"] == "Service":
                assert one["spec"]["selector"][INSTANCE] == size, one
            if one["kind"] in ("NetworkPolicy", "PodMonitor"):
                selector = one["spec"].get("podSelector") or one["spec"]["selector"]
                assert selector["matchLabels"][INSTANCE] == size, one
        assert environment(objects, "coordinator", size)["OFFSHOOT_WORKERS_DNS"] == f"{size}-target:7001,{size}-draft:7001"
    other = helm.render(release="pair", values=LEAST)
    assert find(other, "Deployment", "pair-offshoot-target")

    # Sources of models.
    def source(model, role="target", **more):
        objects = render({"target": {"model": model}, **more})
        return pod(objects, role), environment(objects, role)

    spec, variables = source("pvc://claim/some/folder")
    assert variables["OFFSHOOT_MODEL"] == "/models/some/folder"
    assert spec["volumes"] == [{"name": "models", "persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}]
    assert spec["containers"][0]["volumeMounts"] == [{"name": "models", "mountPath": "/models", "readOnly": True}]
    spec, variables = source("pvc://claim")
    assert variables["OFFSHOOT_MODEL"] == "/models"
    spec, variables = source("oci://registry.example:5000/m/llama:8b#model")
    assert variables["OFFSHOOT_MODEL"] == "/models/model"
    assert spec["volumes"] == [{"name": "models", "image": {"reference": "registry.example:5000/m/llama:8b"}}]
    spec, variables = source("oci://registry.example/m/llama@sha256:" + "0" * 64, "coordinator")
    assert variables["OFFSHOOT_TOKENIZER"] == "/models" and spec["volumes"][0]["image"]["reference"].endswith("0" * 64)
    hub = {"huggingFace": {"tokenSecret": "token"}}
    spec, variables = source("hf://org/name@abc", **hub)
    assert variables["OFFSHOOT_MODEL"] == "hf://org/name@abc" and variables["HF_HOME"] == "/models"
    token = [one for one in spec["containers"][0]["env"] if one["name"] == "HF_TOKEN"]
    assert token[0]["valueFrom"]["secretKeyRef"] == {"name": "token", "key": "token"}
    assert [volume["name"] for volume in spec["volumes"]] == ["models"] and "emptyDir" in spec["volumes"][0]
    assert spec["containers"][0]["volumeMounts"] == [{"name": "models", "mountPath": "/models", "readOnly": False}]
    spec, _ = source("hf://org/name:Q8_0", "coordinator", **merge(hub, {"huggingFace": {"cache": {"claim": "cache"}}}))
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "cache"}
    workers = find(render({"target": {"model": "hf://org/name"}, **hub}), "NetworkPolicy", "offshoot-workers")
    assert {443, 53} <= {port["port"] for rule in workers["spec"]["egress"] for port in rule["ports"]}
    assert find(plain, "NetworkPolicy", "offshoot-workers")["spec"]["egress"] == []
    objects = render({"coordinator": {"tokenizer": "hf://org/name"}})
    assert {"ports": [{"port": 443}]} in find(objects, "NetworkPolicy", "offshoot-coordinators")["spec"]["egress"]
    for endpoint, port in (("https://hub.example", 443), ("http://hub.example/", 80), ("http://hub.example:8080/a", 8080), ("https://hub:8443", 8443)):
        objects = render({"target": {"model": "hf://org/name"}, "huggingFace": {"endpoint": endpoint}})
        for role in ("workers", "coordinators"):
            ways = find(objects, "NetworkPolicy", f"offshoot-{role}")["spec"]["egress"]
            assert {"ports": [{"port": port}]} in ways, (endpoint, role, ways)

    # GPUs.
    slice_of = {"count": 1, "resource": "nvidia.com/mig-1g.10gb", "products": ["NVIDIA-A100-SXM4-80GB"]}
    objects = render({"draft": {"gpu": slice_of, "tolerations": [{"key": "a", "operator": "Exists"}]}})
    spec = pod(objects, "draft")
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/mig-1g.10gb": "1"}
    assert environment(objects, "draft")["OFFSHOOT_DEVICE"] == "cuda:0"
    assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu", "a"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms[0]["matchExpressions"][0]["values"] == ["NVIDIA-A100-SXM4-80GB"]
    update = find(objects, "Deployment", "offshoot-draft")["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": 1, "maxSurge": 0}
    spare = render({"draft": {"gpu": slice_of, "updateSurge": True}})
    update = find(spare, "Deployment", "offshoot-draft")["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxUnavailable": 0, "maxSurge": 1}

    # Images by role and by digest.
    digest = "sha256:" + "a" * 64
    objects = render({"image": {"digest": digest}, "target": {"image": {"tag": "0.1.0-cuda"}}})
    assert pod(objects, "draft")["containers"][0]["image"] == f"registry.example/offshoot@{digest}"
    assert pod(objects, "target")["containers"][0]["image"] == "registry.example/offshoot:0.1.0-cuda"

    # Certificates carry the names by which processes are called.
    objects = helm.render(EXAMPLES / "two-coordinators.yaml", values=IMAGE)
    certificates = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Certificate"}
    mounted = {volume["secret"]["secretName"] for one in objects if one["kind"] in ("Deployment", "Pod")
               for volume in (one["spec"].get("template", one)["spec"]["volumes"]) if "secret" in volume}
    assert mounted == {spec["secretName"] for spec in certificates.values()}, (mounted, certificates)
    for address in environment(objects, "coordinator")["OFFSHOOT_WORKERS_DNS"].split(","):
        host = address.partition(":")[0]
        assert host in certificates[host]["dnsNames"], (host, certificates)
    assert environment(objects, "target")["OFFSHOOT_TRACE_SAMPLE_RATIO"] == "0.05"
    ways = find(objects, "NetworkPolicy", "offshoot-workers")["spec"]["egress"]
    assert ways[-1]["ports"] == [{"port": 4317}] and "namespaceSelector" in ways[-1]["to"][0]

    # A role that is scaled by load has no number in its manifest.
    objects = helm.render(EXAMPLES / "pair-small.yaml", release="small", values=IMAGE)
    for role, scaled in (("target", True), ("draft", True), ("coordinator", True)):
        assert ("replicas" in find(objects, "Deployment", f"small-{role}")["spec"]) is not scaled, role
    assert find(objects, "ScaledObject", "small-target")["spec"]["idleReplicaCount"] == 0
    assert find(objects, "Service", "small-coordinator")["spec"]["publishNotReadyAddresses"] is True
    rules = [rule for group in find(objects, "PrometheusRule", "small")["spec"]["groups"] for rule in group["rules"]]
    none = next(rule for rule in rules if rule.get("alert") == "OffshootNoTarget")
    assert "offshoot:requests_waiting:sum > 0" in none["expr"], none

    # The pod of `helm test` calls the Service that there is, with the image of the release.
    test = find(plain, "Pod", "offshoot-test")
    words = test["spec"]["containers"][0]["args"]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert words[0] == "generate" and "--connect=offshoot-coordinator:7000" in words, words
    assert find(plain, "Service", "offshoot-coordinator")["spec"]["ports"][0]["port"] == 7000

    # Rules, alerts and the dashboard are those of deploy/monitoring.
    objects = helm.render(EXAMPLES / "gpu-products.yaml", values=IMAGE)
    groups = [yaml.safe_load((ROOT / "deploy/monitoring" / name).read_text())["groups"] for name in ("rules.yaml", "alerts.yaml")]
    assert find(objects, "PrometheusRule", "offshoot")["spec"]["groups"] == [*groups[0], *groups[1]]
    dashboard = find(objects, "ConfigMap", "offshoot-dashboard")["data"]["offshoot.json"]
    assert json.loads(dashboard) == json.loads((ROOT / "deploy/monitoring/dashboards/offshoot.json").read_text())

    # A DisaggregatedSet has the pods that Deployments have.
    objects = helm.render(EXAMPLES / "lockstep.yaml", values=IMAGE)
    roles = {role["name"]: role["spec"] for role in find(objects, "DisaggregatedSet", "offshoot")["spec"]["roles"]}
    deployed = helm.render(EXAMPLES / "lockstep.yaml", values=merge(IMAGE, {"workload": {"kind": "Deployment"}}))
    for role, spec in roles.items():
        assert spec["leaderWorkerTemplate"]["size"] == 1
        template = find(deployed, "Deployment", f"offshoot-{role}")["spec"]["template"]
        assert spec["leaderWorkerTemplate"]["workerTemplate"] == template, role
    assert set(roles) == {"target", "draft"}
    return "what values make of the chart"


def check_collector():
    """The pipelines of the OpenTelemetry collector name what its configuration defines, and its pod is restricted."""
    objects = [one for one in yaml.safe_load_all((ROOT / "deploy/monitoring/otel-collector.yaml").read_text()) if one]
    config = yaml.safe_load(find(objects, "ConfigMap", "collector")["data"]["config.yaml"])
    for name, pipeline in config["service"]["pipelines"].items():
        for part in ("receivers", "processors", "exporters"):
            assert pipeline[part] and set(pipeline[part]) <= set(config[part]), (name, part)
    findings = [finding for _, spec in manifests.pods(objects) for finding in manifests.check_restricted(spec)]
    assert not findings, findings
    return "the collector"


# --- examples ------------------------------------------------------------------------------------------------------------

def check_examples(helm, out):
    for folder in ("core", "foreign"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for old in (out / folder).iterdir():
            old.unlink()
    count = 0
    for file in sorted(EXAMPLES.glob("*.yaml")):
        release = file.stem.removeprefix("pair-") if file.stem.startswith("pair-") else "offshoot"
        objects = helm.render(file, release=release, values=IMAGE)
        foreign = [one for one in objects if one["apiVersion"].startswith(FOREIGN)]
        core = [one for one in objects if one not in foreign]
        for folder, some in (("core", core), ("foreign", foreign)):
            if some:
                (out / folder / file.name).write_text(yaml.safe_dump_all(some, sort_keys=False))
        lockstep = any(one["kind"] == "DisaggregatedSet" for one in foreign)
        findings = [finding for finding in manifests.check(core, foreign)
                    if not (lockstep and finding.startswith("roles are missing"))]
        assert not findings, (file.name, findings)
        count += 1
    return f"{count} examples"


def main():
    program, kubectl, out = sys.argv[1:]
    helm = Helm(program)
    said = [check_values(helm), check_refused(helm), check_kustomize(helm, kubectl), check_collector(),
            check_examples(helm, Path(out))]
    print("; ".join(said))


if __name__ == "__main__":
    main()
