"""The files in cluster/: they parse, say only what is known, and agree with the package."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import submit

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
JOBS = ("preprocess", "train", "restore")

# The fields of ray.io/v1 in KubeRay 1.4 to 1.7, as far as a cluster of ours may want them.
FIELDS = {
    "RayCluster": {"apiVersion", "kind", "metadata", "spec"},
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayClusterSpec": {
        "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
        "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
    },
    "AutoscalerOptions": {
        "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources",
        "securityContext", "upscalingMode", "version", "volumeMounts",
    },
    "HeadGroupSpec": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
    "WorkerGroupSpec": {
        "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts",
        "rayStartParams", "replicas", "scaleStrategy", "suspend", "template",
    },
    "RayJobSpec": {
        "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy",
        "entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId",
        "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes",
        "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
        "ttlSecondsAfterFinished",
    },
    "PodSpec": {"containers", "restartPolicy", "serviceAccountName", "tolerations", "volumes"},
    "Container": {"env", "envFrom", "image", "name", "ports", "resources", "volumeMounts"},
}  # fmt: skip


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def ray_version() -> str:
    found = re.search(r"^ray==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def build(name: str) -> list[Any]:
    """Return what `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    text = subprocess.run(
        [kubectl, "kustomize", KUBERAY / name], capture_output=True, text=True, check=True
    ).stdout
    return list(yaml.safe_load_all(text))


def entrypoint(job: str) -> str:
    (patch,) = load(KUBERAY / job / "kustomization.yaml")["patches"]
    (change,) = yaml.safe_load(patch["patch"])
    assert (change["op"], change["path"]) == ("replace", "/spec/entrypoint")
    return str(change["value"])


def known(kind: str, value: Mapping[str, Any]) -> None:
    assert set(value) <= FIELDS[kind], kind


def check_cluster(spec: Mapping[str, Any]) -> None:
    known("RayClusterSpec", spec)
    known("AutoscalerOptions", spec["autoscalerOptions"])
    known("HeadGroupSpec", spec["headGroupSpec"])
    assert spec["rayVersion"] == ray_version()
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        known("WorkerGroupSpec", group)
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 20
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        known("PodSpec", pod)
        assert pod["restartPolicy"] == "Never"  # as autoscaler v2 demands
        (container,) = pod["containers"]
        known("Container", container)
        assert container["envFrom"] == [{"secretRef": {"name": "deblur-s3", "optional": True}}]
        # Ray takes the limits for the resources of a node.
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_every_yaml_parses() -> None:
    paths = [*CLUSTER.rglob("*.yaml"), *CLUSTER.rglob("*.yml")]
    assert len(paths) > 6
    assert all(load(path) for path in paths)


def test_ray_is_everywhere_the_one_that_is_pinned() -> None:
    version = ray_version()
    text = "".join(path.read_text() for path in CLUSTER.rglob("*") if path.is_file())
    assert set(re.findall(r"rayproject/ray:([\d.]+)-py311-[cg]pu", text)) == {version}
    (requirement,) = [
        dependency
        for dependency in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
            "dependencies"
        ]
        if dependency.startswith("ray[")
    ]
    lower, upper = re.findall(r"[\d.]+", requirement)
    pinned = tuple(map(int, version.split(".")))
    assert tuple(map(int, lower.split("."))) <= pinned < tuple(map(int, upper.split(".")))


def test_the_image_is_made_of_files_that_are_there() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    sources = {
        word
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    }
    sent = set(re.findall(r"^!(.+)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), re.M))
    assert {source.split("/")[0] for source in sources} == sent
    assert all((ROOT / source).exists() for source in sources)


def test_the_kuberay_cluster() -> None:
    cluster = load(KUBERAY / "cluster" / "cluster.yaml")
    known("RayCluster", cluster)
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    check_cluster(cluster["spec"])
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    resources = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for name, group in groups.items()
    }
    assert "nvidia.com/gpu" not in resources["cpu"]
    assert resources["gpu"]["nvidia.com/gpu"] == "1"


def test_what_jobs_share() -> None:
    job = load(KUBERAY / "job" / "job.yaml")
    known("RayJob", job)
    known("RayJobSpec", job["spec"])
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0


def test_kubectl_builds_the_cluster_with_its_images() -> None:
    (cluster,) = build("cluster")
    check_cluster(cluster["spec"])
    text = json.dumps(cluster)
    for name in ("cpu", "gpu"):
        assert f'"deblur-{name}"' not in text
        assert f'"registry.example.org/deblur:{name}"' in text


@pytest.mark.parametrize("job", JOBS)
def test_kubectl_builds_the_jobs(job: str) -> None:
    (cluster,), (built,) = build("cluster"), build(job)
    known("RayJob", built)
    known("RayJobSpec", built["spec"])
    assert (built["apiVersion"], built["kind"]) == ("ray.io/v1", "RayJob")
    assert built["metadata"] == {"name": f"deblur-{job}"}
    assert built["spec"]["rayClusterSpec"] == cluster["spec"]
    assert built["spec"]["entrypoint"] == entrypoint(job)


def commands() -> Iterator[Any]:
    """Yield each `deblur` command that cluster/ names, in words."""
    for path in sorted(path for path in CLUSTER.rglob("*") if path.is_file()):
        text = re.sub(r"\n\s+--", " --", path.read_text())
        for found in re.findall(
            r"\bdeblur (?:preprocess|train|restore|submit) [^|\n]*s3:[^|\n]*", text
        ):
            yield pytest.param(shlex.split(found.rstrip("'"))[1:], id=f"{path.name}: {found[:40]}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_is_one_of_ours(words: list[str]) -> None:
    if words[0] == "submit":
        address, words = words[2], words[words.index("--") + 1 :]
        assert submit.dashboard(address) == address
    submit.check(tuple(words))


def test_all_jobs_have_a_command() -> None:
    named = {words.values[0][0] for words in commands()}
    assert named == {*JOBS, "submit"}


@pytest.mark.parametrize(("code", "succeeds"), [(0, True), (1, False), (2, False), (3, True)])
def test_failed_photos_are_no_reason_for_another_cluster(
    code: int, succeeds: bool, tmp_path: Path
) -> None:
    fake = tmp_path / "deblur"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nexit {code}\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    # KubeRay's submitter has bash run `ray job submit … -- ENTRYPOINT`. Ray quotes the words that
    # arrive, and its job supervisor gives them to sh.
    shell = ["bash", "-c", f"printf '%s\\0' {entrypoint('restore')}"]
    submitted = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True)
    command = shlex.join(submitted.stdout.split("\0")[:-1])
    done = subprocess.run(["sh", "-c", command], env=environment, check=False)
    assert (done.returncode == 0) == succeeds
    assert (tmp_path / "words").read_text().split("\n")[:2] == ["restore", "s3://my-bucket/photos"]


def test_ray_up_fits_its_schema() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = load(CLUSTER / "ray-up-aws.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    for name, node in config["available_node_types"].items():
        if name != config["head_node_type"]:
            assert node["min_workers"] <= node["max_workers"] <= config["max_workers"]
