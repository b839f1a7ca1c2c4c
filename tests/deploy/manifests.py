"""Assertions about rendered manifests that no schema makes.

Usage: manifests.py FILE...        each the output of `kubectl kustomize` for an overlay, its image said
"""

import re
import sys

import yaml

ROLES = {"coordinator", "target", "qualifier", "draft"}
# Seconds of the grace period beyond stop delay and drain, at least.
MARGIN = 10
# Roles without which no request is served.
NEEDED = {"coordinator", "target"}
# Kinds of volumes that the Pod Security Standard `restricted` allows. Images are among them since Kubernetes 1.33.
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected",
                      "secret"}


def environment(container):
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def check_deployment(deployment, budgets, services):
    """What is wrong with one Deployment, one finding a line."""
    role = deployment["metadata"]["labels"].get("app.kubernetes.io/component")
    spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
    if role not in ROLES:
        yield f"the component {role!r} is no role"
    asks_cluster = any("OFFSHOOT_WORKERS_ENDPOINTSLICE" in environment(container) for container in pod["containers"])
    if pod.get("automountServiceAccountToken") is not asks_cluster:
        yield "a token is missing" if asks_cluster else "a token is mounted that nothing uses"
    account = pod.get("serviceAccountName")
    if asks_cluster and account in (None, "default"):
        yield "it has the namespace's account"
    if not asks_cluster and account not in (None, "default"):
        yield "it has an account that nothing uses"
    if role == "coordinator" and account is None:
        yield "no account is named: one that was named before would stay"
    if pod.get("enableServiceLinks") is not False:
        yield "service links put variables into the pod that its flags read"
    security = pod.get("securityContext", {})
    if (security.get("runAsNonRoot"), security.get("runAsUser")) != (True, 65532):
        yield "it does not run as 65532"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccomp is not RuntimeDefault"
    if not pod.get("topologySpreadConstraints"):
        yield "its pods are not spread over nodes"
    for container in pod["containers"]:
        yield from (f"container {container['name']}: {finding}" for finding in check_container(container))
        settings = environment(container)
        delay, drain = (int(settings.get(f"OFFSHOOT_{name}", "0")) for name in ("STOP_DELAY", "DRAIN_GRACE"))
        grace = pod.get("terminationGracePeriodSeconds", 30)
        if delay == 0 or drain == 0 or grace < delay + drain + MARGIN:
            yield f"grace of {grace} s is not delay {delay} + drain {drain} + margin {MARGIN}"
    update = spec.get("strategy", {}).get("rollingUpdate", {})
    if role in NEEDED:
        if update.get("maxUnavailable") != 0 or not update.get("maxSurge"):
            yield "an update may leave too few pods of a role that requests need"
        if spec.get("replicas", 2) < 2:
            yield "one pod only of a role that requests need"
    labels = spec["template"]["metadata"]["labels"].items()
    if not any(budget["spec"]["selector"]["matchLabels"].items() <= labels for budget in budgets):
        yield "no disruption budget"
    service = next((one for one in services if one["spec"]["selector"].items() <= labels), None)
    if service is None:
        yield "no Service selects it"
    elif role != "coordinator":
        if service["spec"].get("clusterIP") != "None" or not service["spec"].get("publishNotReadyAddresses"):
            yield "its Service is not headless with publishNotReadyAddresses"
        if not spec.get("minReadySeconds"):
            yield "no minReadySeconds: coordinators need time to find a new worker before an old one goes"


def check_container(container):
    for probe, path in (("startupProbe", "/startup"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        request = container.get(probe, {}).get("httpGet", {})
        if (request.get("path"), request.get("port")) != (path, "admin"):
            yield f"{probe} does not ask {path}"
    if container.get("livenessProbe", {}).get("timeoutSeconds", 1) <= 5:
        yield "the liveness probe gives up before /live answers"
    resources = container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or not {"cpu", "memory"} <= set(resources.get("requests", {})):
        yield "no requests, or no limit of memory"
    if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
        yield "it may change its files"
    image = container["image"]
    tag = re.search(r"(?:@sha256:[0-9a-f]{64}|:([\w.-]+))$", image)
    if not tag or tag.group(1) == "latest":
        yield f"the image {image} has no digest and no tag, or the tag latest"
    if "command" in container:
        yield "it replaces the entry point of the image"


def check_restricted(pod):
    """The Pod Security Standard `restricted`, on one pod of Linux."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is not restricted"
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= RESTRICTED_VOLUMES:
            yield f"the volume {volume['name']} is not restricted: {', '.join(sorted(kinds))}"
    if pod.get("securityContext", {}).get("sysctls"):
        yield "sysctls are not restricted"
    for container in (*pod.get("initContainers", []), *pod["containers"]):
        security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        name = container["name"]
        if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
            yield f"{name} may run as root"
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        capabilities = security.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name} may use capabilities"
        if security.get("procMount", "Default") != "Default":
            yield f"{name} sees all of /proc"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name} takes a port of the node"
        if any("host" in probe.get("httpGet", {}) for key, probe in container.items() if key.endswith("Probe")):
            yield f"{name} has a probe of another host"


def pods(objects):
    """Every pod that the objects make, with the name of what makes it."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one["metadata"]["name"], one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
        elif one["kind"] == "DisaggregatedSet":
            for role in one["spec"]["roles"]:
                yield role["name"], role["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]


def check_policies(policies, deployments):
    """Every pod is covered in both directions, admin ports are for monitoring and workers for coordinators."""
    def selects(policy, labels):
        selector = policy["spec"]["podSelector"]
        named = selector.get("matchLabels", {}).items() <= labels.items()
        return named and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))

    for deployment in deployments:
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        role = labels.get("app.kubernetes.io/component")
        own = [policy for policy in policies if selects(policy, labels)]
        for direction in ("Ingress", "Egress"):
            if not any(direction in policy["spec"]["policyTypes"] for policy in own):
                yield f"no policy for the {direction.lower()} of {role}"
        for policy in own:
            for rule in policy["spec"].get("ingress", []):
                ports = {port["port"] for port in rule.get("ports", [])}
                peers = rule.get("from", [])
                if not ports or not peers:
                    yield f"{policy['metadata']['name']} lets anybody in"
                if "admin" in ports and (ports != {"admin"} or any("namespaceSelector" not in peer for peer in peers)):
                    yield f"{policy['metadata']['name']} opens admin ports to more than monitoring"
                if "grpc" in ports and role != "coordinator" and any(
                        peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")
                        != "coordinator" for peer in peers):
                    yield f"{policy['metadata']['name']} lets others than coordinators at workers"


def check_accounts(by_kind, deployments):
    """Accounts may list and watch EndpointSlices of their namespace, and nothing else."""
    accounts = {one["metadata"]["name"] for one in by_kind.get("ServiceAccount", [])}
    used = {name for deployment in deployments if (name := deployment["spec"]["template"]["spec"].get("serviceAccountName", "default")) != "default"}
    if accounts != used:
        yield f"accounts are {sorted(accounts)}, and pods use {sorted(used)}"
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        if by_kind.get(kind):
            yield f"a {kind} is more than one namespace"
    allowed = [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
    roles = {one["metadata"]["name"]: one["rules"] for one in by_kind.get("Role", [])}
    for name, rules in roles.items():
        if rules != allowed:
            yield f"the role {name} may do more or less than list and watch EndpointSlices"
    bound = {subject["name"] for binding in by_kind.get("RoleBinding", []) if binding["roleRef"]["name"] in roles
             for subject in binding["subjects"] if subject.get("namespace") == binding["metadata"].get("namespace", "offshoot")}
    if bound != used:
        yield f"pods use the accounts {sorted(used)}, and {sorted(bound)} have a role"


def check_autoscalers(autoscalers, deployments):
    names = {deployment["metadata"]["name"]: deployment for deployment in deployments}
    for autoscaler in autoscalers:
        name = autoscaler["spec"]["scaleTargetRef"]["name"]
        if name not in names:
            yield f"the autoscaler of {name} has nothing to scale"
        elif "replicas" in names[name]["spec"]:
            yield f"every apply would reset what the autoscaler of {name} has decided"
        if any(metric["type"] != "External" for metric in autoscaler["spec"].get("metrics", [])):
            yield f"the autoscaler of {name} does not follow external metrics"


def check(objects, foreign=()):
    """What is wrong with objects of Kubernetes; `foreign` are those of other groups that belong to them."""
    by_kind = {}
    for one in (*objects, *foreign):
        by_kind.setdefault(one["kind"], []).append(one)
    deployments = by_kind.get("Deployment", [])
    budgets, services = by_kind.get("PodDisruptionBudget", []), by_kind.get("Service", [])
    for deployment in deployments:
        name = deployment["metadata"]["name"]
        yield from (f"{name}: {finding}" for finding in check_deployment(deployment, budgets, services))
    roles = {deployment["metadata"]["labels"]["app.kubernetes.io/component"] for deployment in deployments}
    if not {"coordinator", "target", "draft"} <= roles:
        yield f"roles are missing: there are {sorted(roles)}"
    yield from check_accounts(by_kind, deployments)
    yield from check_policies(by_kind.get("NetworkPolicy", []), deployments)
    for name, pod in pods((*objects, *foreign)):
        yield from (f"{name}: {finding}" for finding in check_restricted(pod))
    scaled = [*by_kind.get("HorizontalPodAutoscaler", []), *by_kind.get("ScaledObject", [])]
    yield from check_autoscalers(scaled, deployments)
    if len({one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"}) != 1:
        yield "not everything is in one namespace"
    # Names that coordinators look up, against the Services that there are. EndpointSlices name ports, DNS does not.
    for variable, key in (("DNS", "port"), ("ENDPOINTSLICE", "name")):
        ports = {(one["metadata"]["name"], str(port[key])) for one in services for port in one["spec"]["ports"]}
        for deployment in deployments:
            names = environment(deployment["spec"]["template"]["spec"]["containers"][0]).get(f"OFFSHOOT_WORKERS_{variable}")
            for name in (names or "").split(","):
                if name and tuple(name.split(":")) not in ports:
                    yield f"there is no Service {name}"


def main():
    count = 0
    for path in sys.argv[1:]:
        with open(path) as file:
            objects = [one for one in yaml.safe_load_all(file) if one]
        for finding in check(objects):
            print(f"{path}: {finding}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
