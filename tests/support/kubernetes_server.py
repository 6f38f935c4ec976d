"""A server on loopback that answers the real kubectl for RayJobs, pods and their logs; a few dozen lines of its API."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

JOBS = "/apis/ray.io/v1/namespaces/default/rayjobs"
PODS = "/api/v1/namespaces/default/pods"
VERBS = ["create", "delete", "get", "list"]
KIND = {"group": "ray.io", "version": "v1", "kind": "RayJob"}
VERSION = {"groupVersion": "ray.io/v1", "version": "v1"}
DISCOVERY = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList", "apiVersion": "v1",
        "groups": [{"name": "ray.io", "versions": [VERSION], "preferredVersion": VERSION}],
    },
    "/api/v1": {
        "kind": "APIResourceList", "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": VERBS}],
    },
    "/apis/ray.io/v1": {
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ray.io/v1",
        "resources": [{"name": "rayjobs", "singularName": "", "namespaced": True, "kind": "RayJob", "verbs": VERBS}],
    },
    "/openapi/v3": {"paths": {"apis/ray.io/v1": {"serverRelativeURL": "/openapi/v3/apis/ray.io/v1"}}},
    "/openapi/v3/apis/ray.io/v1": {
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"},
        "paths": {f"{JOBS}/{{name}}": {"patch": {
            "parameters": [{"name": "fieldValidation", "in": "query"}], "x-kubernetes-group-version-kind": KIND,
        }}},
    },
}  # fmt: skip


class Cluster:
    """What is there: RayJobs by name; pods, each with what it printed, by name."""

    def __init__(self):
        self.jobs = {}
        self.pods = {}
        self.printed = {}
        self.validated = set()


@contextmanager
def kubernetes(kubeconfig):
    """Yields a cluster that kubectl finds by a configuration, which is written here."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    Thread(target=server.serve_forever, daemon=True).start()
    place = {"server": f"http://127.0.0.1:{server.server_port}"}
    config = {
        "apiVersion": "v1", "kind": "Config", "clusters": [{"name": "here", "cluster": place}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}], "current-context": "nowhere",
    }  # fmt: skip
    kubeconfig.write_text(json.dumps(config))
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *_):
        """Silent."""

    def do_GET(self):
        """Discovery, a RayJob, pods by their labels, a pod's log."""
        url = urlsplit(self.path)
        name = url.path.rpartition("/")[2]
        if url.path in DISCOVERY:
            self._answer(DISCOVERY[url.path])
        elif url.path == PODS:
            wanted = dict(each.split("=") for each in parse_qs(url.query)["labelSelector"][0].split(","))
            pods = [pod for pod in self.cluster.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
            self._answer({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
        elif url.path.startswith(PODS) and name == "log":
            self._answer(self.cluster.printed[url.path.split("/")[-2]])
        elif url.path == f"{JOBS}/{name}" and name in self.cluster.jobs:
            self._answer(self.cluster.jobs[name])
        else:
            self._refuse(404, "NotFound", f'"{name}" not found')

    def do_POST(self):
        """A new RayJob."""
        tree = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = tree["metadata"]["name"]
        self.cluster.validated.update(parse_qs(urlsplit(self.path).query).get("fieldValidation", []))
        if name in self.cluster.jobs:
            self._refuse(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        else:
            self.cluster.jobs[name] = tree
            self._answer(tree, code=201)

    def do_DELETE(self):
        """A RayJob goes when asked for."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(self.cluster.jobs.pop(urlsplit(self.path).path.rpartition("/")[2]))

    def _refuse(self, code, reason, message):
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
        self._answer(status | {"reason": reason, "message": message, "code": code}, code=code)

    def _answer(self, content, code=200):
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())
