"""SkyPilot: its own package takes what is rendered, its script holds before shellcheck and starts the ranks."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.submission import sky
from pipeline.submission.submitting import render, submit
from tests.support.orders import SMALL, order

SKY = os.environ.get("WORDLANES_SKY_PYTHON")
URIS = ["data=s3://bucket/wt103", "run=s3://bucket/runs/wt103"]
IMAGE = "via.image=registry.example/wordlanes:1.0"
PLAIN = ["via=sky", *SMALL, *URIS, IMAGE]
FULL = [
    "via=sky", *SMALL, *URIS, "via.infra=aws/us-east-1", "via.accelerators=H100:8", "via.nodes=2", "via.spot=true",
    "via.workdir=/home/me/wordlanes", "via.disk_gb=200", "via.secrets=[WANDB_API_KEY]", "cluster.num_workers=16",
]  # fmt: skip


def task(*typed, verb="train"):
    return yaml.safe_load(render(order(*typed, verb=verb)).text)


def test_the_task_is_what_the_keys_say():
    rendered = render(order(*FULL))
    tree = yaml.safe_load(rendered.text)
    assert tree["resources"] == {
        "infra": "aws/us-east-1", "accelerators": "H100:8", "use_spot": True, "disk_size": 200,
        "job_recovery": {"max_restarts_on_errors": 5},
    }  # fmt: skip
    assert (tree["num_nodes"], tree["workdir"]) == (2, "/home/me/wordlanes")
    assert tree["secrets"] == {"WANDB_API_KEY": None}
    assert tree["setup"] == "python -m pip install --constraint constraints.txt '.[s3]'\n"
    assert rendered.command == ["sky", "jobs", "launch", "--secret", "WANDB_API_KEY", f"{tree['name']}.yaml"]


def test_an_image_has_the_package_already():
    tree = task(*PLAIN)
    assert tree["resources"]["image_id"] == "docker:registry.example/wordlanes:1.0"
    assert not {"setup", "workdir", "secrets"} & set(tree) and "infra" not in tree["resources"]


@pytest.mark.parametrize("number", [0, 1])
def test_each_machine_starts_its_ranks(tmp_path, number):
    """The script runs here, with an interpreter that writes down how it was called."""
    python = tmp_path / "a python"
    python.write_text(
        f'#!{sys.executable}\nimport json, sys\nopen("{tmp_path}/called", "w").write(json.dumps(sys.argv))\n'
    )
    python.chmod(0o755)
    script = task(*FULL, f"via.python={python}", "init_from=s3://b/it's $(x)")["run"]
    environment = {
        "SKYPILOT_NODE_RANK": str(number), "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    _, *words = json.loads((tmp_path / "called").read_text())
    at = words.index("jobs")
    assert words[:at] == [
        "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "8", "--node-rank", str(number),
        "--master-addr", "10.0.0.5", "--master-port", "29500", "-m",
    ]  # fmt: skip
    assert words[at + 1] == "train" and "init_from=s3://b/it's $(x)" in words and words[-1] == "cluster=none"


def test_without_gpus_the_ranks_are_shared_out():
    assert "--nproc-per-node 3 " in task(*PLAIN, "via.nodes=2", "cluster.num_workers=6")["run"]
    assert "--nproc-per-node 1 " in task(*PLAIN, "via.nodes=2")["run"]


def test_prepare_is_one_process():
    run = task(*PLAIN, "corpus.train=s3://bucket/text", verb="prepare")["run"]
    assert "\nexec python -m jobs prepare " in run


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_hold_before_shellcheck():
    trees = [task(*FULL), task(*PLAIN), task(*PLAIN, "corpus.train=s3://bucket/text", verb="prepare")]
    for script in [tree[key] for tree in trees for key in ("run", "setup") if key in tree]:
        done = subprocess.run(
            ["shellcheck", "--shell=bash", "--severity=style", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


JUDGE = """
import json, sys, tempfile, sky
found = []
for text in json.load(sys.stdin):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            task = sky.Task.from_yaml(file.name)
            (resources,) = task.resources
            found.append([task.num_nodes, resources.accelerators, resources.use_spot])
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


@pytest.mark.skipif(SKY is None, reason="set WORDLANES_SKY_PYTHON to an interpreter that has skypilot")
def test_skypilot_takes_the_tasks_and_finds_what_is_misspelt(tmp_path):
    full = render(order(*FULL)).text.replace("/home/me/wordlanes", str(tmp_path))
    texts = [full, render(order(*PLAIN)).text, full.replace("num_nodes", "num_node"), full.replace("use_spot", "spot")]
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [SKY, "-c", JUDGE],
        input=json.dumps(texts),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    whole, plain, *misspelt = json.loads(done.stdout.splitlines()[-1])
    assert (whole, plain) == ([2, {"H100": 8}, True], [1, None, False])
    assert ["num_node'" in misspelt[0], "spot" in misspelt[1]] == [True, True], misspelt


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["via.image=null"], "via.image=null and via.workdir=null leave the machines without this package"),
        (["data=/mnt/data"], "data=/mnt/data is on no disk of machines that are new each time"),
        (["init_from=file:///mnt/a"], "init_from=file:///mnt/a is on no disk"),
        (["via.accelerators=8xH100 big"], "via.accelerators=8xH100 big is not NAME:NUMBER; use one as H100:8"),
        (["via.accelerators=H100:8", "cluster.num_workers=4"], "differs from the GPUs, .*; use cluster.num_workers=8"),
        (["via.nodes=2", "cluster.num_workers=3"], "not divisible by via.nodes=2; use cluster.num_workers=4"),
        (["cluster=ray"], "via=sky runs with cluster=none, and cluster=ray is given"),
    ],
)
def test_what_fresh_machines_could_not_run_is_refused(typed, line):
    keys = {each.partition("=")[0] for each in typed}
    with pytest.raises(ConfigError, match=line):
        order(*(each for each in PLAIN if each.partition("=")[0] not in keys), *typed)


def test_a_secrets_value_is_refused_and_not_repeated():
    for planted in ("WANDB_API_KEY=0123abcd", "0123abcd"):
        with pytest.raises(ConfigError, match=r"via.secrets holds what is no variable's name") as raised:
            order(*PLAIN, f"via.secrets=[{planted}]")
        assert "0123abcd" not in str(raised.value)


def test_prepare_on_several_machines_is_refused():
    with pytest.raises(ConfigError, match=r"via.nodes=2 and prepare runs on one machine; use via.nodes=1"):
        order(*PLAIN, "via.nodes=2", verb="prepare")


def test_it_is_written_and_not_submitted(s3_bucket):
    outcome = submit(order("via=sky", *SMALL, IMAGE, f"data={s3_bucket}/sky/data", f"run={s3_bucket}/sky/run"))
    name = outcome.submission.id
    assert outcome.status.name is None and outcome.file == f"{s3_bucket}/sky/run/submissions/{name}.yaml"
    assert sky.status(outcome.submission).state == "silent"
    for call, typed in (
        (lambda: sky.cancel(outcome.submission), f"sky jobs cancel --name {name}"),
        (lambda: sky.logs(outcome.submission, follow=True), f"sky jobs logs --name {name}"),
    ):
        with pytest.raises(ConfigError, match=typed):
            call()
