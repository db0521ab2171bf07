"""The example manifests pass their tools' validation, and what they run composes."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from ring_ray.actors.placement import check, plan
from ring_ray.compose import composed

JOBS = Path(__file__).parents[2] / "jobs"
RAYJOB = yaml.safe_load((JOBS / "rayjob.yaml").read_text())

# What KubeRay's documentation says of the fields that we use; of pods, Kubernetes' own schema says more.
TEXT, POD, NUMBER = {"type": "string"}, {"type": "object"}, {"type": "integer", "minimum": 0}


def record(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


GROUP = {"rayStartParams": {"type": "object", "additionalProperties": TEXT}, "template": record(("spec",), spec=POD)}
WORKERS = record(
    ("groupName", "template"), groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, **GROUP
)
SCHEMA = record(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=record(("name",), name=TEXT),
    spec=record(
        ("rayClusterSpec",),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=record(
            ("headGroupSpec",),
            rayVersion=TEXT,
            authOptions=record(mode={"enum": ["disabled", "token"]}),
            headGroupSpec=record(("template",), **GROUP),
            workerGroupSpecs={"type": "array", "items": WORKERS},
        ),
    ),
)


def groups() -> list[dict[str, Any]]:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_rayjob_has_the_fields_of_kuberay() -> None:
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(RAYJOB)] == []


@pytest.mark.parametrize("group", groups(), ids=["head", "workers"])
def test_the_pods_pass_kubernetes_schema(group: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_rayjob_asks_for_what_its_cluster_has() -> None:
    python, script, *overrides = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (python, Path(script).name) == ("python", "train.py")
    config = composed(overrides)
    nodes = []
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        node = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        nodes += [node] * group.get("replicas", 1)
    check(plan(config.cluster, config.optional_roles), nodes)
    environment = yaml.safe_load(RAYJOB["spec"]["runtimeEnvYAML"])
    assert environment == yaml.safe_load((JOBS / "runtime_env.yaml").read_text())


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.sh")), ids=lambda script: script.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of the same environment
    found = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert found.stdout == ""
