"""Each assertion of manifests.py fails on a manifest that breaks it.

Usage: manifests_test.py FILE        a rendered overlay without findings
"""

import copy
import sys

import yaml

from manifests import check


def spoil(objects, kind, name, path, value):
    """A copy of the manifests in which one field of one object is another; None removes it."""
    objects = copy.deepcopy(objects)
    one = next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    for key in path[:-1]:
        one = one[key]
    if value is None:
        del one[path[-1]]
    else:
        one[path[-1]] = value
    return objects


POD = ["spec", "template", "spec"]
CONTAINER = [*POD, "containers", 0]
SPOILED = [
    ("Deployment", "offshoot-draft", [*POD, "enableServiceLinks"], None, "service links"),
    ("Deployment", "offshoot-draft", [*POD, "automountServiceAccountToken"], True, "token"),
    ("Deployment", "offshoot-draft", [*POD, "serviceAccountName"], "a", "account that nothing uses"),
    ("Deployment", "offshoot-coordinator", [*POD, "serviceAccountName"], None, "no account is named"),
    ("Deployment", "offshoot-target", [*POD, "terminationGracePeriodSeconds"], 60, "grace"),
    ("Deployment", "offshoot-target", [*POD, "securityContext", "runAsNonRoot"], None, "65532"),
    ("Deployment", "offshoot-target", [*CONTAINER, "readinessProbe"], None, "/ready"),
    ("Deployment", "offshoot-target", [*CONTAINER, "livenessProbe", "timeoutSeconds"], 1, "gives up"),
    ("Deployment", "offshoot-target", [*CONTAINER, "resources", "limits"], {}, "limit"),
    ("Deployment", "offshoot-target", [*CONTAINER, "image"], "example/offshoot:latest", "latest"),
    ("Deployment", "offshoot-target", [*CONTAINER, "image"], "example/offshoot", "no tag"),
    ("Deployment", "offshoot-target", [*CONTAINER, "securityContext", "capabilities"], {}, "capabilities"),
    ("Deployment", "offshoot-target", ["spec", "strategy", "rollingUpdate", "maxUnavailable"], 1, "too few"),
    ("Deployment", "offshoot-target", [*CONTAINER, "securityContext", "allowPrivilegeEscalation"], None, "gain privileges"),
    ("Deployment", "offshoot-target", [*CONTAINER, "securityContext", "runAsUser"], 0, "run as root"),
    ("Deployment", "offshoot-target", [*CONTAINER, "securityContext", "readOnlyRootFilesystem"], False, "change its files"),
    ("Deployment", "offshoot-target", [*POD, "securityContext", "seccompProfile"], {}, "seccomp profile"),
    ("Deployment", "offshoot-target", [*POD, "hostNetwork"], True, "hostNetwork"),
    ("Deployment", "offshoot-target", [*POD, "volumes"], [{"name": "a", "hostPath": {"path": "/"}}], "hostPath"),
    ("Deployment", "offshoot-target", [*POD, "initContainers"], [{"name": "a"}], "a may use capabilities"),
    ("Deployment", "offshoot-coordinator", ["spec", "replicas"], 1, "one pod only"),
    ("Service", "offshoot-draft", ["metadata", "namespace"], None, "one namespace"),
    ("Service", "offshoot-draft", ["spec", "publishNotReadyAddresses"], None, "publishNotReadyAddresses"),
    ("Service", "offshoot-draft", ["metadata", "name"], "other", "there is no Service"),
    ("PodDisruptionBudget", "offshoot-draft", ["spec", "selector", "matchLabels"], {"a": "b"}, "budget"),
    ("NetworkPolicy", "offshoot-workers", ["spec", "ingress", 0, "from"], [{"podSelector": {}}], "than coordinators"),
    ("NetworkPolicy", "offshoot-workers", ["spec", "policyTypes"], ["Ingress"], "egress"),
    ("NetworkPolicy", "offshoot-admin", ["spec", "ingress", 0, "from"], [{"podSelector": {}}], "monitoring"),
]


def main():
    with open(sys.argv[1]) as file:
        objects = [one for one in yaml.safe_load_all(file) if one]
    assert not list(check(objects)), "the manifests are to be right to begin with"
    for kind, name, path, value, expected in SPOILED:
        findings = list(check(spoil(objects, kind, name, path, value)))
        assert any(expected in finding for finding in findings), (kind, name, path, expected, findings)
    print(f"{len(SPOILED)} spoiled manifests were found")


if __name__ == "__main__":
    main()
