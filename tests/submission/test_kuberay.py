"""KubeRay: what is rendered holds before KubeRay's and Kubernetes' schemas; kubectl is asked and understood."""

import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.submission import kuberay
from pipeline.submission.submitting import render, submit
from tests.support.kubectl import NO_SERVER
from tests.support.kubernetes_server import kubernetes
from tests.support.orders import SMALL, order

ROOT = Path(__file__).resolve().parents[2]
CRDS = os.environ.get("WORDLANES_KUBERAY_CRDS")
NAME = "wt103-0fc1f6e5-a1"
URIS = ["data=s3://bucket/wt103", "run=s3://bucket/runs/wt103"]
IMAGE = "via.image=registry.example/wordlanes:1.0"
PLAIN = ["via=kuberay", *SMALL, *URIS, IMAGE]


@pytest.fixture
def volume(tmp_path):
    """Arguments for a run on a volume that is mounted here."""
    return ["via=kuberay", *SMALL, IMAGE, f"data={tmp_path}/data", f"run={tmp_path}/run", "via.volume_claim=shared",
            f"via.mount={tmp_path}"]  # fmt: skip


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A kubectl on PATH whose cluster is this folder."""
    folder = tmp_path / "cluster"
    (tmp_path / "bin").mkdir()
    folder.mkdir()
    script = tmp_path / "bin" / "kubectl"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/kubectl.py "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("KUBECTL_FOLDER", str(folder))
    return folder


def manifest(*typed, verb="train"):
    return yaml.safe_load(render(order(*typed, verb=verb)).text)


def say(cluster, name, **status):
    """Has KubeRay say this of a RayJob."""
    file = cluster / "default" / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": status}))


def pods_of(tree):
    spec = tree["spec"]
    workers = [each["template"] for each in spec["rayClusterSpec"]["workerGroupSpecs"]]
    return [spec["submitterPodTemplate"], spec["rayClusterSpec"]["headGroupSpec"]["template"], *workers]


# what is rendered


def test_the_rayjob_is_what_the_keys_say(volume):
    tree = manifest(
        *volume, "cluster=ray", "cluster.num_workers=16", "cluster.min_workers=5", "cluster.grace_seconds=45.5",
        "via.gpus_per_pod=4",
        "via.namespace=research", "via.secrets=[wandb,s3]", "via.token_secret=ray-token", "via.backoff_limit=7",
        "via.ttl_seconds=60", "via.user_id=4321",
    )  # fmt: skip
    spec, name = tree["spec"], tree["metadata"]["name"]
    assert name.startswith("run-") and name.endswith("-a1") and tree["metadata"]["namespace"] == "research"
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"], spec["shutdownAfterJobFinishes"]) == (7, 60, True)
    assert spec["entrypoint"].startswith("python -m jobs.again train experiment=demo ")
    assert " cluster=ray " in spec["entrypoint"] and "via" not in spec["entrypoint"]
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "76"}}
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 2, 4)
    submitter, head, worker = pods_of(tree)
    asked = worker["spec"]["containers"][0]["resources"]
    assert asked["limits"] == asked["requests"] == {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 4}
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"]
    assert submitter["spec"]["restartPolicy"] == "Never" and "volumes" not in submitter["spec"]
    for pod in (head, worker):
        (container,) = pod["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "wandb"}}, {"secretRef": {"name": "s3"}}]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounts == {"dshm": "/dev/shm", "shared": volume[-1].partition("=")[2]}
        assert pod["spec"]["volumes"][1]["persistentVolumeClaim"] == {"claimName": "shared"}
    for pod in pods_of(tree):
        assert pod["spec"]["terminationGracePeriodSeconds"] == 76
        assert pod["spec"]["securityContext"]["runAsUser"] == 4321


def test_each_pod_keeps_the_restricted_security_standard():
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    for pod in pods_of(manifest(*PLAIN, "via.secrets=[wandb]")):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec) and not spec["automountServiceAccountToken"]
        assert {kind for each in spec.get("volumes", []) for kind in each} <= {
            "name",
            "emptyDir",
            "persistentVolumeClaim",
        }
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["resources"]["limits"] == container["resources"]["requests"]


def test_without_a_volume_and_secrets_none_is_named():
    text = render(order(*PLAIN)).text
    assert "persistentVolumeClaim" not in text and "secret" not in text.lower() and "&id" not in text


def test_what_is_typed_reaches_the_command_through_a_shell(volume):
    odd = "precision=bf16", "init_from=s3://b/a b'c$(id)`;{x,y}*"
    (_, *words) = shell_words(manifest(*volume, *odd)["spec"]["entrypoint"])
    assert words[:3] == ["-m", "jobs.again", "train"] and odd[1] in words


def shell_words(command):
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_prepare_has_the_interpreter_that_is_typed():
    typed = (*PLAIN, "corpus.train=s3://bucket/text", "via.gpus_per_pod=0", "via.python=/opt/venv/bin/python")
    entrypoint = manifest(*typed, verb="prepare")["spec"]["entrypoint"]
    assert entrypoint.startswith("/opt/venv/bin/python -m jobs.again prepare ")


def test_the_image_has_the_version_of_ray_that_the_manifest_names():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert manifest(*PLAIN)["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


# schemas


def everything():
    """Manifests that between them have every field that we write."""
    yield manifest(*PLAIN)
    mount = ["via.volume_claim=shared", "via.mount=/tmp", "data=/tmp/d", "run=/tmp/r"]
    more = [
        "cluster=ray",
        "cluster.num_workers=4",
        "cluster.min_workers=2",
        "via.secrets=[wandb]",
        "via.token_secret=ray",
    ]
    yield manifest("via=kuberay", *SMALL, IMAGE, *mount, *more)
    yield manifest(*PLAIN, "via.gpus_per_pod=0", verb="prepare")


# what we write of KubeRay's own, outside of pods and metadata
FIELDS = {
    "spec.submissionMode", "spec.entrypoint", "spec.runtimeEnvYAML", "spec.backoffLimit",
    "spec.shutdownAfterJobFinishes", "spec.ttlSecondsAfterFinished", "spec.submitterPodTemplate",
    "spec.rayClusterSpec.rayVersion", "spec.rayClusterSpec.authOptions.mode",
    "spec.rayClusterSpec.authOptions.secretName", "spec.rayClusterSpec.headGroupSpec.rayStartParams",
    "spec.rayClusterSpec.headGroupSpec.template",
    *(
        f"spec.rayClusterSpec.workerGroupSpecs.{name}"
        for name in ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template")
    ),
}  # fmt: skip


def fields(tree, prefix=""):
    """The dotted names of a manifest's fields; those of pods and maps of free names are one."""
    if isinstance(tree, list):
        yield from (name for each in tree for name in fields(each, prefix))
    elif isinstance(tree, dict) and not prefix.endswith((".template", "Template", ".rayStartParams")):
        yield from (name for key, value in tree.items() for name in fields(value, f"{prefix}.{key}".lstrip(".")))
    else:
        yield prefix


def test_no_other_field_of_kuberay_is_written():
    """Also where KubeRay's definition is not at hand."""
    found = {name for tree in everything() for name in fields({"spec": tree["spec"]})}
    assert found == FIELDS


def closed(schema):
    """A definition's schema as JSON Schema has it, that takes no field that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(each) for key, each in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False):
        found.pop("anyOf", None)
        found["type"] = ["integer", "string"]
    if found.pop("nullable", False):
        found["type"] = [found["type"], "null"]
    named = isinstance(schema.get("properties"), dict)
    if named and "additionalProperties" not in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


@pytest.fixture(scope="module")
def ray_jobs():
    """What judges RayJobs as KubeRay's own definition has it."""
    if CRDS is None:
        pytest.skip("set WORDLANES_KUBERAY_CRDS to a folder with ray.io_rayjobs.yaml or .yaml.xz of KubeRay 1.7")
    plain = Path(CRDS, "ray.io_rayjobs.yaml")
    text = plain.read_bytes() if plain.exists() else lzma.decompress(Path(f"{plain}.xz").read_bytes())
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"].pop("additionalProperties", None)  # Kubernetes' own, judged elsewhere
    return jsonschema.Draft202012Validator(schema)


def test_kuberay_takes_every_manifest(ray_jobs):
    for tree in everything():
        assert [f"{error.json_path}: {error.message}" for error in ray_jobs.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "path",
    [
        "spec.backoffLimit",
        "spec.rayClusterSpec.authOptions.secretName",
        "spec.rayClusterSpec.workerGroupSpecs.0.minReplicas",
        "spec.rayClusterSpec.headGroupSpec.template.spec.automountServiceAccountToken",
        "spec.submitterPodTemplate.spec.containers.0.imagePullPolicy",
    ],
)
def test_kuberay_finds_a_field_that_is_misspelt(ray_jobs, path):
    *_, tree, _ = everything()
    *parents, last = (int(each) if each.isdigit() else each for each in path.split("."))
    place = tree
    for each in parents:
        place = place[each]
    place[f"{last}s"] = place.pop(last)
    assert [error for error in ray_jobs.iter_errors(tree) if f"{last}s" in error.message]


def judge_pod(pod):
    """Raises for what Kubernetes would not take in a pod."""
    whole = {"apiVersion": "v1", "kind": "Pod", **deepcopy(pod)}
    whole["metadata"]["name"] = "any"
    kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_takes_the_pods_of_every_manifest():
    for tree in everything():
        for pod in pods_of(tree):
            judge_pod(pod)


@pytest.mark.parametrize("field", ["securityContext", "terminationGracePeriodSeconds", "volumes"])
def test_kubernetes_finds_a_field_that_is_misspelt(field):
    pod = pods_of(manifest(*PLAIN))[1]
    pod["spec"][f"{field}s"] = pod["spec"].pop(field)
    with pytest.raises(kubernetes_validate.ValidationError, match=f"{field}s"):
        judge_pod(pod)


# what is refused


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["via.image=null"], r"via.image=null is not given; use via.image=REGISTRY/NAME:TAG"),
        (["via.image=reg.example:5000/words"], r"may be another image .*, as reg.example:5000/words:1.0, or a digest"),
        (["via.image=words:latest"], r"via.image=words:latest may be another image .*, as words:1.0, or a digest"),
        (["via.image=https://reg/words:1"], "via.image=https://reg/words:1 is no image's name"),
        (["via.image=words@sha256:12"], "via.image=words@sha256:12 is no image's name"),
        (["via.namespace=My_Team"], "via.namespace=My_Team is no name that Kubernetes takes; .*, as my-team"),
        (["via.namespace=" + "a" * 64], "is no name that Kubernetes takes"),
        (["via.secrets=[wandb,S3]"], "via.secrets holds what is no name of a Kubernetes Secret"),
        (["via.token_secret=ray."], "via.token_secret=ray. is no name that Kubernetes takes; .*, as ray"),
        (["via.volume_claim=-"], "via.volume_claim=- is no name that Kubernetes takes; .*, as wordlanes"),
        (["cluster.num_workers=6", "via.gpus_per_pod=4"], "not divisible by via.gpus_per_pod=4, .*num_workers=8"),
        (["cluster.cpus_per_worker=9"], "via.cpus_per_pod=8 is too few .*; use via.cpus_per_pod=9"),
        (["accelerator=cuda", "via.gpus_per_pod=0"], "via.gpus_per_pod=0 has no GPU for accelerator=cuda"),
        (["accelerator=cpu"], "via.gpus_per_pod=1 asks for GPUs that accelerator=cpu leaves idle; .*gpus_per_pod=0"),
        (["via.mount=mnt"], "via.mount=mnt is no folder's full path"),
        (["init_from=/home/me/a"], "init_from=/home/me/a is on no disk that the pods have; .*via.volume_claim=NAME"),
        (["via.volume_claim=a", "init_from=file:///home/me"], "init_from=file:///home/me is not below via.mount="),
        (["via.volume_claim=a", "via.mount=/tmp", "init_from=/tmp/../etc"], "init_from=/tmp/../etc is not below"),
        (["cluster=none"], "via=kuberay runs with cluster=ray, and cluster=none is given; leave it out"),
    ],
)  # fmt: skip
def test_what_kubernetes_could_not_take_or_run_is_refused(typed, line):
    keys = {each.partition("=")[0] for each in typed}
    with pytest.raises(ConfigError, match=line):
        order(*(each for each in PLAIN if each.partition("=")[0] not in keys), *typed)


def test_a_run_on_a_volume_that_is_not_here_is_refused():
    volume = ["via.volume_claim=a", "via.mount=/no/such", "data=/no/such/d", "run=/no/such/r"]
    with pytest.raises(ConfigError, match=r"via.mount=/no/such is not here, so run=/no/such/r would be another folder"):
        order("via=kuberay", *SMALL, IMAGE, *volume)


def test_text_to_prepare_must_be_seen_by_the_pods():
    with pytest.raises(ConfigError, match=r"corpus.train=/home/text is on no disk that the pods have"):
        order(*PLAIN, "corpus.train=[s3://b/a,/home/text]", verb="prepare")


# kubectl


def test_pressed_twice_it_is_one_job(volume, cluster):
    first = submit(order(*volume))
    name = first.submission.id
    assert (first.status.state, first.status.name, first.again) == ("queued", name, False)
    assert json.loads((cluster / "default" / f"{name}.json").read_text())["metadata"]["name"] == name
    assert Path(first.file).read_text() == render(order(*volume)).text
    second = submit(order(*volume))
    assert (second.submission, second.again, second.status.state) == (first.submission, True, "queued")
    say(cluster, name, jobDeploymentStatus="Failed", jobStatus="FAILED")
    assert submit(order(*volume)).submission.number == 2


def test_a_record_whose_job_was_never_created_is_submitted_under_its_id(volume, cluster, monkeypatch):
    (cluster / "refuse").touch()
    with pytest.raises(ConfigError, match=r"is not submitted: kubectl says 'Error from server \(Forbidden\)"):
        submit(order(*volume))
    (cluster / "refuse").unlink()
    monkeypatch.setattr("pipeline.submission.submitting.SETTLE_SECONDS", 0.0)
    assert submit(order(*volume)).submission.number == 1


def test_a_job_that_another_has_created_meanwhile_is_the_same(volume, cluster):
    typed = order(*volume)
    text = render(typed)
    assert kuberay.submit(typed, text, "") == kuberay.submit(typed, text, "") == typed.submission.id


def test_without_kubectl_the_file_is_all_there_is(volume, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    outcome = submit(order(*volume))
    assert outcome.status.name is None and outcome.command[-3:] == ["create", "--filename", outcome.file]
    assert kuberay.status(outcome.submission).state == "silent"
    again = submit(order(*volume))
    assert (again.submission, again.again, again.status.state) == (outcome.submission, True, "silent")
    assert "kubectl, which is not on PATH here" in again.status.reason


def test_a_cluster_that_does_not_answer_is_told_in_a_line(volume, cluster):
    (cluster / "down").touch()
    typed = order(*volume)
    line = "is not submitted: kubectl says 'The connection to the server localhost:8080 was refused"
    with pytest.raises(ConfigError, match=line) as raised:
        submit(typed)
    assert "\n" not in str(raised.value) and "memcache" in NO_SERVER
    assert kuberay.status(typed.submission).state == "silent"
    for call in (kuberay.cancel, lambda each: next(kuberay.logs(each, follow=False))):
        with pytest.raises(ConfigError, match="localhost:8080"):
            call(typed.submission)


def test_kubectl_that_hangs_is_given_up(volume, cluster, monkeypatch, tmp_path):
    (tmp_path / "bin" / "kubectl").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(kuberay, "ASK_SECONDS", 0.3)
    found = kuberay.status(order(*volume).submission)
    assert found.state == "silent" and "after 0.3 s" in found.reason


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        ({}, "queued", "KubeRay has not looked at it; is its operator there?"),
        ({"jobDeploymentStatus": "Initializing"}, "queued", "Initializing"),
        ({"jobDeploymentStatus": "Suspended"}, "queued", "Suspended"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": ""}, "queued", "Retrying"),
        ({"jobDeploymentStatus": "Running"}, "queued", "Running"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "PENDING"}, "queued", "Running: PENDING"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running", ""),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, "running", "Running: FAILED"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "ended", "Complete: SUCCEEDED"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "ended", "Complete: STOPPED"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit\ncode 1"},
         "ended", "Failed: FAILED: AppFailed: exit code 1"),
    ],
)  # fmt: skip
def test_where_a_job_stands_is_what_kuberay_says(volume, cluster, status, state, reason):
    submission = submit(order(*volume)).submission
    say(cluster, submission.id, **status)
    found = kuberay.status(submission)
    assert (found.state, found.reason, found.name) == (state, reason, submission.id)


def test_a_job_that_waits_tells_what_its_pods_wait_for(volume, cluster):
    submission = submit(order(*volume)).submission
    say(cluster, submission.id, jobDeploymentStatus="Initializing", rayClusterName="abc")
    unplaced = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no nvidia.com/gpu"}]}
    pulls = {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no\nsuch"}}}]}
    starts = {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}
    pods = {"items": [{"status": each} for each in (unplaced, unplaced, pulls, starts)]}
    (cluster / "pods.json").write_text(json.dumps(pods))
    found = kuberay.status(submission)
    assert (found.state, found.reason) == ("queued", "0/3 nodes: no nvidia.com/gpu; ErrImagePull: no such")


def test_a_job_that_is_cancelled_is_gone_and_an_ended_one_stays(volume, cluster):
    submission = submit(order(*volume)).submission
    kuberay.cancel(submission)
    assert kuberay.status(submission).state == "gone"
    kuberay.cancel(submission)
    kuberay.submit(order(*volume), render(order(*volume)), "")
    say(cluster, submission.id, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    kuberay.cancel(submission)
    assert kuberay.status(submission).state == "ended"


def test_a_job_that_is_being_deleted_goes_on(volume, cluster):
    submission = submit(order(*volume)).submission
    file = cluster / "default" / f"{submission.id}.json"
    tree = json.loads(file.read_text())
    tree["metadata"]["deletionTimestamp"] = "2026-11-30T00:00:00Z"
    file.write_text(json.dumps(tree))
    assert (kuberay.status(submission).state, kuberay.status(submission).reason) == ("running", "is being deleted")


def test_the_log_is_the_submitters(volume, cluster):
    submission = submit(order(*volume)).submission
    with pytest.raises(ConfigError, match=r"gives no log of .*: No resources found in default namespace"):
        next(kuberay.logs(submission, follow=False))
    (cluster / f"{submission.id}.log").write_text("step 1\nstep 2\n")
    assert list(kuberay.logs(submission, follow=True)) == ["step 1\n", "step 2\n"]
    assert "--follow" in json.loads((cluster / "calls").read_text().splitlines()[-1])


def test_who_has_seen_enough_of_a_log_does_not_wait_for_its_end(volume, cluster):
    submission = submit(order(*volume)).submission
    (cluster / f"{submission.id}.log").write_text("step 1\n")
    (cluster / "goes-on").touch()
    pieces, begun = kuberay.logs(submission, follow=True), time.monotonic()
    assert next(pieces) == "step 1\n"
    pieces.close()
    assert time.monotonic() - begun < 40


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_real_kubectl_takes_what_it_is_asked(volume, tmp_path, monkeypatch):
    """Its options and answers, against a server of our own; its configuration's current cluster is another."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))  # it keeps what it discovers there
    typed = order(*volume, "via.context=here")
    with kubernetes(tmp_path / "kubeconfig") as cluster:
        submission = submit(typed).submission
        name = submission.id
        assert cluster.jobs[name] == yaml.safe_load(render(typed).text) and cluster.validated == {"Strict"}
        assert kuberay.submit(typed, render(typed), "") == name and submit(typed).again
        cluster.jobs[name]["status"] = {"jobDeploymentStatus": "Initializing", "rayClusterName": "abc"}
        waits = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
        pod = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "head", "labels": {"ray.io/cluster": "abc"}}}
        cluster.pods["head"] = pod | {"status": {"conditions": waits}}
        assert kuberay.status(submission).reason == "0/3 nodes are available"
        with pytest.raises(ConfigError, match="No resources found in default namespace"):
            next(kuberay.logs(submission, follow=False))
        metadata = {"name": "s", "namespace": "default", "labels": {"job-name": name}}
        spec = {"containers": [{"name": "ray-job-submitter"}]}
        cluster.pods["s"] = pod | {"metadata": metadata, "spec": spec}
        cluster.printed["s"] = "step 1\nstep 2\n"
        assert "".join(kuberay.logs(submission, follow=True)) == "step 1\nstep 2\n"
        kuberay.cancel(submission)
        assert cluster.jobs == {} and kuberay.status(submission).state == "gone"
    assert kuberay.status(submission).state == "silent"
    assert kuberay.status(replace(submission, via={**submission.via, "context": "none"})).reason.endswith(
        """'error: context "none" does not exist'"""
    )
