"""Makes infra/examples anew: what `submit ... --dry-run` renders for each way onto a cluster.

`python infra/examples/render.py [FOLDER]`, or `make examples`. A way whose module is not there is left out.
"""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from pipeline.submission.adaptors import ADAPTORS
from pipeline.submission.submitting import order_of, render

HERE = Path(__file__).resolve().parent
RUN = ("experiment=lm1b_lstm2048", "accelerator=cuda", "tracking.project=lm1b")
ON_DISK = ("data=/mnt/lm1b", "run=/mnt/runs/lm1b")
IN_STORE = ("data=s3://example/lm1b", "run=s3://example/runs/lm1b")
PYTHON = "via.python=/mnt/venv/bin/python"
TYPED = {
    "ray": ("via=ray", *RUN, *ON_DISK, "cluster.num_workers=16", "via.address=http://head.example:8265", PYTHON),
    "slurm": (
        "via=slurm", *RUN, *ON_DISK, "cluster.num_workers=16", "via.nodes=2", "via.gpus_per_node=8",
        "via.partition=gpu", "via.account=research", "via.minutes=720", PYTHON,
    ),
    "kuberay": (
        "via=kuberay", *RUN, *ON_DISK, "cluster.num_workers=16", "via.image=registry.example/wordlanes:1.0",
        "via.volume_claim=shared", "via.mount=/mnt", "via.gpus_per_pod=8", "via.cpus_per_pod=64", "via.memory_gb=256",
        "via.namespace=research", "via.secrets=[wandb]", "via.token_secret=ray-token",
    ),
    "sky": (
        "via=sky", *RUN, *IN_STORE, "cluster.num_workers=16", "via.infra=aws", "via.accelerators=H100:8",
        "via.nodes=2", "via.spot=true", "via.image=registry.example/wordlanes:1.0", "via.secrets=[WANDB_API_KEY]",
    ),
}  # fmt: skip


def main(folder: Path) -> None:
    """Writes `<kind><ending>` for each way into a folder."""
    for kind in (each for each, module in ADAPTORS.items() if find_spec(module)):
        order = order_of("train", TYPED[kind])
        # what differs from commit to commit has no place here
        same = replace(order.submission, version="1.0.0", commit="0" * 40, dirty=False, configuration="0" * 16)
        rendered = render(replace(order, submission=same))
        (folder / f"{kind}{rendered.ending}").write_text(rendered.text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
