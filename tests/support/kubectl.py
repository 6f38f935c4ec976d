"""A `kubectl` for tests: its cluster is a folder of JSON files, named by the environment variable KUBECTL_FOLDER.

`<namespace>/<name>.json` is a RayJob, `pods.json` a list of pods, `<name>.log` what a job's submitter printed; a file
`down` makes the cluster unreachable, `refuse` has it refuse what is created, `goes-on` has a log that is followed last
a minute. `calls` has each call's arguments.
"""

import json
import os
import sys
import time
from pathlib import Path

NO_SERVER = """E1130 17:00:00.000000 1 memcache.go:265] err="couldn't get current server API group list"
The connection to the server localhost:8080 was refused - did you specify the right host or port?
"""


def main(arguments):
    """Does what kubectl does of what the adaptor asks."""
    folder = Path(os.environ["KUBECTL_FOLDER"])
    with (folder / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if (folder / "down").exists():
        sys.exit(NO_SERVER)
    assert arguments[0] == "--namespace"
    namespace, (verb, *rest) = (
        arguments[1],
        [each for each in arguments[2:] if not each.startswith("--request-timeout")],
    )
    {"create": create, "get": get, "delete": delete, "logs": logs}[verb](folder / namespace, rest)


def create(place, rest):
    """`create --filename=-`."""
    import yaml

    assert rest == ["--filename=-"]
    tree = yaml.safe_load(sys.stdin)
    file = place / f"{tree['metadata']['name']}.json"
    if (place.parent / "refuse").exists():
        sys.exit('Error from server (Forbidden): rayjobs.ray.io is forbidden: User "me" cannot create it')
    if file.exists():
        sys.exit(f'Error from server (AlreadyExists): rayjobs.ray.io "{file.stem}" already exists')
    place.mkdir(exist_ok=True)
    file.write_text(json.dumps(tree))
    print(f"rayjob.ray.io/{file.stem} created")


def get(place, rest):
    """`get rayjobs.ray.io NAME`, `get pods --selector`."""
    if rest[0] == "pods":
        print((place.parent / "pods.json").read_text())
    else:
        assert rest[0] == "rayjobs.ray.io" and "--ignore-not-found" in rest
        file = place / f"{rest[1]}.json"
        print(file.read_text() if file.exists() else "", end="")


def delete(place, rest):
    """`delete rayjobs.ray.io NAME`."""
    assert rest[0] == "rayjobs.ray.io"
    (place / f"{rest[1]}.json").unlink()


def logs(place, rest):
    """`logs --selector job-name=NAME`."""
    name = rest[rest.index("--selector") + 1].removeprefix("job-name=")
    file = place.parent / f"{name}.log"
    if not file.exists():
        print(f"No resources found in {place.name} namespace.", file=sys.stderr)
    else:
        print(file.read_text(), end="", flush=True)
        if "--follow" in rest and (place.parent / "goes-on").exists():
            time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1:])
