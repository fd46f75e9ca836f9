"""The manifests for Kubernetes: valid, as narrow as the cluster can hold a pod, and fitting the programs.

What an overlay comes to is worked out here by the few things of kustomize that they use, and nothing else of it is
known. Where the real tool is installed, its answer has to be the same.
"""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from cli.main import app
from ledger.migrate import PATIENCE
from runtime.settings import PROJECT, MigrationSettings, StarterSettings, TemporalSetupSettings, WorkerSettings
from starter.server import GRACEFUL_SHUTDOWN_SECONDS
from worker import GRACEFUL_SHUTDOWN

FOLDER = PROJECT / "deploy" / "kubernetes"
OVERLAYS = ("production", "temporal-cloud", "temporal-cloud-mtls")
SUPPORTED = ("1.34", "1.37")
"""The oldest and the newest version of Kubernetes that are held to."""

Manifest = dict[str, Any]


# What kustomize makes of a folder


def read(file: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each is not None]


def rendered(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization."""
    [said] = read(folder / "kustomization.yaml")
    assert (said.pop("apiVersion"), said.pop("kind")) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    found: list[Manifest] = []
    for name in said.pop("resources"):
        place = folder / name
        found += rendered(place) if place.is_dir() else read(place)
    for patch in said.pop("patches", []):
        _patch(found, patch)
    references = [one for name in said.pop("configurations", []) for one in read(folder / name)]
    for configured in references:
        # The one that there is; `_rename` knows it.
        [reference] = configured["nameReference"]
        assert reference["fieldSpecs"] == [{"kind": "ScaledObject", "path": "spec/scaleTargetRef/name"}]
    if suffix := said.pop("nameSuffix", None):
        _rename(found, suffix)
    for label in said.pop("labels", []):
        assert label.pop("includeSelectors") is True
        _label(found, label.pop("pairs"))
        assert not label
    if namespace := said.pop("namespace", None):
        for each in found:
            if each["kind"] == "Namespace":
                each["metadata"]["name"] = namespace
            else:
                each["metadata"]["namespace"] = namespace
    for image in said.pop("images", []):
        for container in [one for each in found for one in containers(each)]:
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    assert not said, f"{folder}: {sorted(said)} is not worked out here"
    return found


def _rename(found: list[Manifest], suffix: str) -> None:
    names = {each["metadata"]["name"] for each in found if each["kind"] == "Deployment"}
    for each in found:
        each["metadata"]["name"] += suffix
        target = each.get("spec", {}).get("scaleTargetRef")
        if target and target["name"] in names:
            target["name"] += suffix


def _label(found: list[Manifest], pairs: dict[str, str]) -> None:
    for each in found:
        each["metadata"].setdefault("labels", {}).update(pairs)
        spec = each.get("spec", {})
        if each["kind"] in ("Deployment", "PodDisruptionBudget"):
            spec["selector"]["matchLabels"].update(pairs)
        if each["kind"] == "Deployment":
            spec["template"]["metadata"]["labels"].update(pairs)
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                spread["labelSelector"]["matchLabels"].update(pairs)


def _patch(found: list[Manifest], patch: Manifest) -> None:
    target = patch.pop("target")
    concerned = [
        each
        for each in found
        if each["kind"] == target["kind"] and target.get("name") in (None, each["metadata"]["name"])
    ]
    assert concerned, f"nobody is meant by {target}"
    for step in yaml.safe_load(patch.pop("patch")):
        for each in concerned:
            _step(each, copy.deepcopy(step))
    assert not patch


def _step(manifest: Manifest, step: Manifest) -> None:
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
    place: Any = manifest
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if isinstance(place, list):
        assert (step["op"], last) == ("add", "-")
        place.append(step["value"])
    else:
        assert step["op"] in ("add", "replace")
        assert step["op"] == "add" or last in place, f"{step['path']} is not there to be replaced"
        place[last] = step["value"]


# What they come to


def pod(manifest: Manifest) -> Manifest | None:
    template: Manifest | None = manifest.get("spec", {}).get("template")
    return template["spec"] if template and manifest["kind"] in ("Deployment", "Job") else None


def containers(manifest: Manifest) -> list[Manifest]:
    spec = pod(manifest) or {}
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture
def manifests(overlay: str) -> list[Manifest]:
    return rendered(FOLDER / "overlays" / overlay)


def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    found = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    assert len(found) == len(manifests), "two of one name"
    return found


def real_tool() -> list[str] | None:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if path := shutil.which(command[0]):
            return [path, command[1]]
    return None


@every_overlay
def test_an_overlay_comes_to_what_the_real_tool_makes_of_it(overlay: str, manifests: list[Manifest]) -> None:
    ours = by_name(manifests)
    assert {kind for kind, _ in ours} == {
        "Namespace",
        "ConfigMap",
        "ServiceAccount",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
        "ScaledObject",
        "Job",
        "NetworkPolicy",
    }
    if tool := real_tool():
        made = subprocess.run(  # noqa: S603
            [*tool, str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, check=True, timeout=60
        )
        assert by_name(list(yaml.safe_load_all(made.stdout))) == ours


SCALED_OBJECT = {
    "type": "object",
    "required": ["scaleTargetRef", "triggers"],
    "additionalProperties": False,
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string"}},
        },
        "pollingInterval": {"type": "integer", "minimum": 1},
        "minReplicaCount": {"type": "integer", "minimum": 1},
        "maxReplicaCount": {"type": "integer", "minimum": 2},
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "horizontalPodAutoscalerConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"behavior": {"type": "object"}},
                }
            },
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "metricType", "metadata"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "prometheus"},
                    "metricType": {"enum": ["Value", "AverageValue"]},
                    "metadata": {
                        "type": "object",
                        "required": ["serverAddress", "query", "threshold"],
                        "additionalProperties": {"type": "string"},
                    },
                },
            },
        },
    },
}
"""As much of KEDA's own definition as ours uses; that is no part of Kubernetes, whose schemas do not know it."""


def validate(manifest: Manifest, version: str) -> None:
    if manifest["kind"] != "ScaledObject":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    assert manifest["apiVersion"] == "keda.sh/v1alpha1"
    Draft202012Validator(SCALED_OBJECT).validate(manifest["spec"])
    # KEDA hands this on to an autoscaler as it is.
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda"},
        "spec": {
            "scaleTargetRef": {"kind": "Deployment", **manifest["spec"]["scaleTargetRef"]},
            "maxReplicas": manifest["spec"]["maxReplicaCount"],
            **manifest["spec"]["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }
    kubernetes_validate.validate(scaler, version, strict=True)


@pytest.mark.parametrize("kubernetes", SUPPORTED)
def test_every_manifest_is_valid_for_every_supported_version(kubernetes: str) -> None:
    every = [each for overlay in OVERLAYS for each in rendered(FOLDER / "overlays" / overlay)]
    for manifest in {json.dumps(each, sort_keys=True): each for each in every}.values():
        validate(manifest, kubernetes)


@pytest.mark.parametrize("kind", ["Deployment", "Job", "NetworkPolicy", "ScaledObject"])
def test_a_slip_of_the_hand_in_a_manifest_is_noticed(kind: str) -> None:
    manifest = next(each for each in rendered(FOLDER / "overlays" / "production") if each["kind"] == kind)
    manifest["spec"]["replicsa"] = 3
    with pytest.raises(Exception, match="replicsa"):
        validate(manifest, SUPPORTED[-1])


@every_overlay
def test_a_pod_can_do_nothing_that_it_need_not(manifests: list[Manifest]) -> None:
    programs = [each for each in manifests if pod(each)]
    assert {each["metadata"]["name"] for each in programs} == {
        "referrals-starter",
        "referrals-worker-0-1-0",
        "referrals-migrate",
        "referrals-setup-temporal",
    }
    for manifest in programs:
        spec = pod(manifest) or {}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        # The user that the image was made for.
        assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in (PROJECT / "Dockerfile").read_text()
        for volume in spec.get("volumes", []):
            assert set(volume) <= {"name", "emptyDir", "secret"}
        for container in containers(manifest):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for resource in ("cpu", "memory"):
                asked, most = (container["resources"][kind][resource] for kind in ("requests", "limits"))
                assert 0 < quantity(asked) <= quantity(most)
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"].rpartition("/")[2]
    [namespace] = [each for each in manifests if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def quantity(text: str) -> float:
    match = re.fullmatch(r"(\d+)(m|Mi|Gi)?", text)
    assert match, text
    return int(match[1]) * {None: 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}[match[2]]


@every_overlay
def test_no_secret_stands_in_a_manifest_and_each_program_is_given_its_own(manifests: list[Manifest]) -> None:
    assert not [each for each in manifests if each["kind"] == "Secret"]
    owners: dict[str, set[str]] = {}
    for manifest in manifests:
        for container in containers(manifest):
            for variable in container.get("env", []):
                if re.search(r"KEY|SECRET|DATABASE_URL|PASSWORD|TOKEN|ENDPOINTS", variable["name"]):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    owners.setdefault(reference["name"], set()).add(manifest["metadata"]["name"])
            assert not [each for each in container.get("envFrom", []) if "configMapRef" not in each]
    # The schema's owner is known to the migrations alone.
    assert owners["referrals-migrate"] == {"referrals-migrate"}
    assert owners["referrals-starter"] == {"referrals-starter"}
    assert owners["referrals-worker"] == {"referrals-worker-0-1-0"}
    for name, value in settings_of(manifests).items():
        assert not re.search(r"(?i)whsec_|sk_(test|live)|password", f"{name} {value}")


def settings_of(manifests: list[Manifest]) -> dict[str, str]:
    [found] = [each["data"] for each in manifests if each["kind"] == "ConfigMap"]
    return dict(found)


PROGRAMS: dict[str, type[Any]] = {
    "starter": StarterSettings,
    "worker": WorkerSettings,
    "migrate": MigrationSettings,
    "setup-temporal": TemporalSetupSettings,
    "schema": MigrationSettings,
}
"""Which settings the program of a container reads."""


@every_overlay
def test_each_program_is_given_what_it_needs_and_nothing_that_it_does_not_know(manifests: list[Manifest]) -> None:
    shared = settings_of(manifests)
    seen = set()
    for manifest in manifests:
        for container in containers(manifest):
            fields = PROGRAMS[container["name"]].model_fields
            known = {f"REFERRALS_{name.upper()}" for name in fields}
            own = {each["name"] for each in container.get("env", [])}
            given = own | (set(shared) if container.get("envFrom") else set())
            needed = {f"REFERRALS_{name.upper()}" for name, each in fields.items() if each.is_required()}
            assert needed <= given, container["name"]
            assert {name for name in own if name.startswith("REFERRALS_")} <= known, container["name"]
            if container["name"] in ("starter", "worker", "setup-temporal"):
                assert {"TEMPORAL_ADDRESS", "TEMPORAL_NAMESPACE"} <= given
            seen.add(container["name"])
    assert seen == set(PROGRAMS)
    assert {name for name in shared if name.startswith("REFERRALS_")} <= {
        f"REFERRALS_{name.upper()}" for each in PROGRAMS.values() for name in each.model_fields
    }


def options() -> dict[str, set[str]]:
    from typer.main import get_command

    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {name: {opt for each in command.params for opt in each.opts} for name, command in commands.items()}


@every_overlay
def test_every_container_gives_a_command_that_there_is(manifests: list[Manifest]) -> None:
    known = options()
    for container in [one for each in manifests for one in containers(each)]:
        program, command, *rest = container["command"]
        assert program == "referrals"
        assert {word for word in rest if word.startswith("--")} <= known[command], container["command"]


@every_overlay
def test_a_pod_that_is_told_to_stop_has_the_time_to(manifests: list[Manifest]) -> None:
    found = by_name(manifests)
    starter = pod(found["Deployment", "referrals-starter"]) or {}
    pause = starter["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert starter["terminationGracePeriodSeconds"] > pause + GRACEFUL_SHUTDOWN_SECONDS
    worker = pod(found["Deployment", "referrals-worker-0-1-0"]) or {}
    assert worker["terminationGracePeriodSeconds"] > GRACEFUL_SHUTDOWN.total_seconds() * 2
    migrate = found["Job", "referrals-migrate"]["spec"]
    assert migrate["activeDeadlineSeconds"] > 1800 >= PATIENCE.total_seconds()


@every_overlay
def test_a_roll_out_and_a_drained_node_leave_enough_pods(manifests: list[Manifest]) -> None:
    found = by_name(manifests)
    for name in ("referrals-starter", "referrals-worker-0-1-0"):
        spec = found["Deployment", name]["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        budget = found["PodDisruptionBudget", name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"]["matchLabels"].items() <= labels.items()
        assert spec["selector"]["matchLabels"] == budget["selector"]["matchLabels"]
        # How many there are is the autoscaler's: each apply would set it back otherwise.
        assert "replicas" not in spec
        [waits] = spec["template"]["spec"]["initContainers"]
        assert waits["command"][:3] == ["referrals", "migrate", "--check"]
        for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    scaler = found["HorizontalPodAutoscaler", "referrals-starter"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "referrals-starter"
    assert scaler["minReplicas"] >= 2
    scaled = found["ScaledObject", "referrals-worker-0-1-0"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "referrals-worker-0-1-0"
    assert scaled["minReplicaCount"] >= 2


@every_overlay
def test_the_ports_of_probes_services_and_policies_are_those_of_the_programs(manifests: list[Manifest]) -> None:
    found = by_name(manifests)
    for name in ("referrals-starter", "referrals-worker-0-1-0"):
        [container] = (pod(found["Deployment", name]) or {})["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        allowed = {
            port["port"]
            for each in manifests
            if each["kind"] == "NetworkPolicy"
            and each["spec"]["podSelector"]["matchLabels"].items()
            <= found["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
            for rule in each["spec"].get("ingress", [])
            for port in rule["ports"]
        }
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        if name == "referrals-starter":
            assert ports == {"http": StarterSettings.model_fields["port"].default}
            assert found["Service", name]["spec"]["ports"][0]["targetPort"] == "http"
            assert allowed == {8000}
        else:
            assert environment["REFERRALS_METRICS_ADDRESS"] == f"0.0.0.0:{ports['metrics']}"
            assert environment["REFERRALS_HEALTH_ADDRESS"] == f"0.0.0.0:{ports['health']}"
            assert allowed == {ports["metrics"]}


def policies(manifests: list[Manifest], labels: dict[str, str]) -> Iterator[Manifest]:
    for each in manifests:
        if each["kind"] == "NetworkPolicy" and each["spec"]["podSelector"]["matchLabels"].items() <= labels.items():
            yield each["spec"]


@every_overlay
def test_every_pod_is_shut_in_both_ways(manifests: list[Manifest]) -> None:
    for manifest in filter(pod, manifests):
        kinds = {
            kind
            for policy in policies(manifests, manifest["spec"]["template"]["metadata"]["labels"])
            for kind in policy["policyTypes"]
        }
        assert kinds == {"Ingress", "Egress"}, manifest["metadata"]["name"]
    reached = {
        port["port"]
        for policy in policies(manifests, {"app.kubernetes.io/part-of": "referrals"})
        for rule in policy["egress"]
        for port in rule["ports"]
    }
    temporal = int(settings_of(manifests)["TEMPORAL_ADDRESS"].rpartition(":")[2])
    assert reached == {53, 443, 5432, temporal}


def test_the_workers_build_id_is_the_release_that_the_overlay_puts_on_their_pods() -> None:
    found = by_name(rendered(FOLDER / "overlays" / "production"))
    deployment = found["Deployment", "referrals-worker-0-1-0"]
    [container] = (pod(deployment) or {})["containers"]
    variables = {each["name"]: each for each in container["env"]}
    path = variables["REFERRALS_BUILD_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    label = re.fullmatch(r"metadata\.labels\['(.+)'\]", path)
    assert label
    release = deployment["spec"]["template"]["metadata"]["labels"][label[1]]
    assert container["image"].endswith(f":{release}")
    assert variables["REFERRALS_DEPLOYMENT_NAME"]["value"]


@pytest.mark.parametrize("overlay", ["temporal-cloud", "temporal-cloud-mtls"])
def test_every_program_that_talks_to_temporal_cloud_is_let_in(overlay: str, manifests: list[Manifest]) -> None:
    shared = settings_of(manifests)
    for name in ("starter", "worker", "setup-temporal"):
        [(spec, container)] = [
            (pod(each) or {}, one) for each in manifests for one in containers(each) if one["name"] == name
        ]
        if overlay == "temporal-cloud":
            assert shared["TEMPORAL_ADDRESS"].endswith(".api.temporal.io:7233")
            assert "TEMPORAL_API_KEY" in {each["name"] for each in container["env"]}
        else:
            [mount] = [each for each in container["volumeMounts"] if each["mountPath"] == "/etc/temporal"]
            [volume] = [each for each in spec["volumes"] if each["name"] == mount["name"]]
            assert volume["secret"]["secretName"] == "referrals-temporal-certificate"
            for setting in ("CERT", "KEY"):
                assert shared[f"TEMPORAL_TLS_CLIENT_{setting}_PATH"].startswith("/etc/temporal/tls.")


def test_the_autoscaler_asks_for_the_seconds_that_the_workers_tell() -> None:
    [scaled] = [each for each in rendered(FOLDER / "worker") if each["kind"] == "ScaledObject"]
    asked = {
        name
        for trigger in scaled["spec"]["triggers"]
        for name in re.findall(r"temporal_\w+", trigger["metadata"]["query"])
    }
    assert asked == set(SCALED_BY)
    assert {float(trigger["metadata"]["threshold"]) for trigger in scaled["spec"]["triggers"]} == {0.2, 0.5}
    assert json.dumps(scaled).count('task_queue=\\"referrals\\"') == len(asked)


SCALED_BY = (
    "temporal_workflow_task_schedule_to_start_latency_bucket",
    "temporal_activity_schedule_to_start_latency_bucket",
)
"""Looked for at a real worker by `tests/test_operators_deploying.py`."""
