"""Objects of other projects against the schemas of those projects; a field that a schema does not have is an error.

Usage: foreign.py SCHEMAS FILE...     SCHEMAS is a folder into which npm has installed typescript and packages of
                                      @kubernetes-models; CRDS names a folder with CRDs (*.yaml) of kinds that these lack

The last line counts the objects, and names the kinds for which there is no schema here.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

PACKAGES = {"cert-manager.io": "cert-manager", "gateway.networking.k8s.io": "gateway-api", "keda.sh": "keda",
            "monitoring.coreos.com": "prometheus-operator"}
OPTIONS = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler"]


def by_types(schemas, objects):
    """As literals of the packages' types, whose compiler refuses fields that there are not; then by their validators."""
    types, values = [], []
    for number, one in enumerate(objects):
        group, _, version = one["apiVersion"].partition("/")
        module = json.dumps(f"@kubernetes-models/{PACKAGES[group]}/{group}/{version}/{one['kind']}")
        types += [f"import {{ I{one['kind']} as T{number} }} from {module};", f"const o{number}: T{number} = {json.dumps(one)};"]
        values += [f"import {{ {one['kind']} as K{number} }} from {module};", f"new K{number}({json.dumps(one)}).validate();"]
    with tempfile.TemporaryDirectory(dir=schemas) as folder:
        source, script = Path(folder, "objects.ts"), Path(folder, "objects.mjs")
        source.write_text("\n".join(types) + "\n")
        script.write_text("\n".join(values) + "\n")
        for command in ([f"{schemas}/node_modules/.bin/tsc", *OPTIONS, str(source)], ["node", str(script)]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                return [(done.stdout + done.stderr).strip()]
    return []


def strict(schema):
    """The schema of a CRD without room for fields that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not open_ended:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def crds(folder):
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.safe_load_all(file.read_text()):
            for version in (crd or {}).get("spec", {}).get("versions", []):
                schema = strict(version["schema"]["openAPIV3Schema"])
                # What the API server knows of every object.
                schema["properties"]["metadata"] = {"type": "object"}
                yield (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]), schema


def main():
    schemas, *files = sys.argv[1:]
    known = dict(crds(Path(os.environ["CRDS"]))) if "CRDS" in os.environ else {}
    typed, checked, without, findings = [], 0, set(), []
    for file in files:
        for one in filter(None, yaml.safe_load_all(Path(file).read_text())):
            key = (one["apiVersion"], one["kind"])
            if key in known:
                from jsonschema import Draft7Validator
                for error in Draft7Validator(known[key]).iter_errors(one):
                    findings.append(f"{file}: {one['kind']} {one['metadata']['name']}: {error.json_path}: {error.message[:300]}")
                checked += 1
            elif one["apiVersion"].partition("/")[0] in PACKAGES:
                typed.append(one)
            else:
                without.add(one["kind"])
    findings += by_types(schemas, typed)
    wrong = json.loads(json.dumps(typed[0]))
    wrong["spec"]["nonsense"] = 1
    if not by_types(schemas, [wrong]):
        findings.append("a field that there is not was not found")
    print("\n".join(findings))
    print(f"{checked + len(typed)} objects" + (f"; without a schema here: {', '.join(sorted(without))}" if without else ""))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
