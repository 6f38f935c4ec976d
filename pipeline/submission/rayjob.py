"""What KubeRay is given: a RayJob (ray.io/v1, KubeRay 1.7), as a tree of plain values.

In: an order and its section. Out: the manifest; pure. The head has no compute and runs the command, each pod of the one
group of workers has as many ranks as GPUs. All run without rights, within limits, behind a token. Secrets are named,
never written: the pods have them from Kubernetes.

KubeRay submits by a pod of its own (K8sJobMode): its log is the job's, and stays when the cluster is gone. That pod may
end well where the job failed (kuberay#3211), so the job itself starts `train` again, and what Ray says of it counts.
"""

import math
import shlex
from posixpath import normpath
from typing import Any

from pipeline.config import KubeRayConfig
from pipeline.submission.adaptors import Order, grace_seconds
from pipeline.submission.manifests import as_yaml

HEAD_CPUS = 2
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}

Tree = dict[str, Any]


def ranks_per_pod(section: KubeRayConfig) -> int:
    """Ranks of each worker's pod: one for each GPU, or one on the CPU."""
    return section.gpus_per_pod or 1


def ray_job(order: Order, section: KubeRayConfig) -> Tree:
    """The RayJob.

    Args:
        order: that was checked.
        section: its section.
    """
    submission = order.submission
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": submission.id,
            "namespace": section.namespace,
            "labels": {"app.kubernetes.io/name": "wordlanes"} | _labels(order),
            "annotations": {"wordlanes/run": submission.run},
        },
        "spec": {
            "submissionMode": "K8sJobMode",
            "entrypoint": shlex.join(_command(order, section)),
            # Ray reads it only from there; without it a stop kills after 3 s
            "runtimeEnvYAML": as_yaml({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_seconds(order))}}),
            "backoffLimit": section.backoff_limit,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": section.ttl_seconds,
            "submitterPodTemplate": _submitter(order, section),
            "rayClusterSpec": {
                "rayVersion": section.ray_version,
                "authOptions": _authentication(section),
                "headGroupSpec": _head(order, section),
                "workerGroupSpecs": [_workers(order, section)],
            },
        },
    }


def _command(order: Order, section: KubeRayConfig) -> list[str]:
    return order.command(section.python or "python", module="jobs.again")


def _labels(order: Order) -> dict[str, str]:
    """Of all that belongs to the job; pods' `app.kubernetes.io/` labels are KubeRay's, which selects by them."""
    return {"wordlanes/job": order.submission.id}


def _authentication(section: KubeRayConfig) -> dict[str, str]:
    named = {} if section.token_secret is None else {"secretName": section.token_secret}
    return {"mode": "token"} | named


def _head(order: Order, section: KubeRayConfig) -> Tree:
    resources = {"cpu": HEAD_CPUS, "memory": f"{section.head_memory_gb:g}Gi"}
    container = _container(section, "ray-head", resources)
    container["ports"] = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    return {"rayStartParams": {"num-cpus": "0"}, "template": _ray_pod(order, section, container)}


def _workers(order: Order, section: KubeRayConfig) -> Tree:
    cluster, ranks = order.config.cluster, ranks_per_pod(section)
    replicas = (cluster.num_workers or 1) // ranks
    resources: Tree = {"cpu": section.cpus_per_pod, "memory": f"{section.memory_gb:g}Gi"}
    if section.gpus_per_pod:
        resources["nvidia.com/gpu"] = section.gpus_per_pod
    return {
        "groupName": "workers",
        "replicas": replicas,
        "minReplicas": replicas if cluster.min_workers is None else math.ceil(cluster.min_workers / ranks),
        "maxReplicas": replicas,
        "rayStartParams": {},
        "template": _ray_pod(order, section, _container(section, "ray-worker", resources)),
    }


def _submitter(order: Order, section: KubeRayConfig) -> Tree:
    """The pod that hands the command to Ray's head; KubeRay adds what it calls, and the token."""
    pod = _pod(order, section, _container(section, "ray-job-submitter", {"cpu": 1, "memory": "1Gi"}))
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def _container(section: KubeRayConfig, name: str, resources: Tree) -> Tree:
    return {
        "name": name,
        "image": section.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": "/tmp"}],  # a user of another number than the image's has no home there
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _ray_pod(order: Order, section: KubeRayConfig, container: Tree) -> Tree:
    """A pod of Ray's cluster: it has the Secrets, the volume, and shared memory for Ray's objects and NCCL."""
    if section.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in section.secrets]
    memory = container["resources"]["limits"]["memory"]
    mounts = {"dshm": "/dev/shm"}
    volumes: list[Tree] = [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": memory}}]
    if section.volume_claim is not None:
        mounts["shared"] = normpath(section.mount)
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": section.volume_claim}})
    container["volumeMounts"] = [{"name": name, "mountPath": path} for name, path in mounts.items()]
    pod = _pod(order, section, container)
    pod["spec"]["volumes"] = volumes
    return pod


def _pod(order: Order, section: KubeRayConfig, container: Tree) -> Tree:
    """A pod as Kubernetes' security standard `restricted` has it."""
    return {
        "metadata": {"labels": _labels(order)},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": section.user_id,
                "runAsGroup": section.user_id,
                "fsGroup": section.user_id,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": grace_seconds(order),
            "containers": [container],
        },
    }
