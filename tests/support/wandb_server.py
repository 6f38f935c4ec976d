"""A server of Weights & Biases on this machine, as far as one run needs it: it keeps what is sent of the history."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

PERSON = {"id": "u", "entity": "e", "username": "u", "email": "", "admin": False, "flags": "{}", "teams": {"edges": []}}
FEATURES = {"cliVersionInfo": {}, "latestLocalVersionInfo": None, "features": []}
OWNER = {"id": "e", "name": "e"}


class Handler(BaseHTTPRequestHandler):
    """Answers each question of the protocol that a run asks; anything else with nothing."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.body()
        self.answer({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.endswith("/file_stream"):
            files, name = json.loads(body).get("files") or {}, self.path.split("/")[-2]
            history = self.server.history.setdefault(name, [])
            history += [json.loads(line) for line in files.get("wandb-history.jsonl", {"content": []})["content"]]
            for line in files.get("wandb-summary.json", {"content": []})["content"]:
                self.server.summaries[name] = json.loads(line)
            self.answer({})
        elif self.path.endswith("/graphql"):
            request = json.loads(body)
            self.answer({"data": self.data(request["query"], request.get("variables") or {})})
        else:
            self.answer({})

    def data(self, query: str, given: dict[str, Any]) -> dict[str, object]:
        name, project = given.get("name"), given.get("project")
        files = [{"name": each, "uploadUrl": f"{self.server.url}/file"} for each in given.get("files", [])]
        bucket = {
            "id": "x",
            "name": name,
            "displayName": name,
            "description": "",
            "config": "{}",
        }
        bucket |= {"sweepName": None, "historyLineCount": 0, "project": {"id": "p", "name": project, "entity": OWNER}}
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
        answers = {
            "viewer": PERSON,
            "serverInfo": FEATURES,
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "model": {"id": "m", "name": project, "entity": OWNER, "bucket": self.known(str(name))},
            "createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files},
            "createArtifact": {"artifact": artifact},
            "notifyScriptableRunAlert": {"success": True},
        }
        if "upsertBucket" in query:
            self.server.projects.add(str(project))
            told = {key: value for key, value in given.items() if value is not None}
            self.server.runs.setdefault(str(name), {}).update(told)
        elif "createArtifact(" in query:
            self.server.artifacts.append(given["input"])
        elif "notifyScriptableRunAlert" in query:
            self.server.alerts.append(given)
        if "query ArtifactType(" in query:
            return {"project": {"artifact": None}}
        return {key: value for key, value in answers.items() if key in query}

    def known(self, run: str) -> dict[str, object] | None:
        lines = self.server.history.get(run)
        if not lines:
            return None
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(lines[-1])]), "eventsTail": "[]"}
        config = self.server.runs.get(run, {}).get("config", "{}")
        texts = {
            "summaryMetrics": json.dumps(self.server.summaries.get(run, {})),
            "config": config,
            "wandbConfig": '{"t": 1}',
        }
        return {"id": "x", "name": run, "displayName": run, "tags": [], **counts, **tails, **texts}


class Server(ThreadingHTTPServer):
    """A server.

    Attributes:
        history, summaries: the records of a run and what sums them up, by its identity.
        projects: those that runs were sent to.
        runs: what was told of a run besides, by its identity: config, tags, groupName and so on.
        artifacts, alerts: in the order in which they came.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.projects: set[str] = set()
        self.summaries: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no finding."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server that ends with the block."""
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
