"""The first steps of AWD-LSTM by `train`, beside a plain PyTorch loop of the same recipe, on the same text.

`python benchmarks/awd.py DATA` trains `experiment=awd_wikitext2` on a prepared corpus for 300 steps each:

- `train`: the whole of `python -m jobs train`, whose masks are arithmetic;
- `plain`: the recipe written for itself with nn.LSTM: locked dropout, dropped words and dropped recurrent weights by
  torch's generator, AR and TAR, SGD, clipping. Read from the configuration are its numbers and nothing else.

Both begin with the same weights and read the same windows, all of one length; the masks differ, and nothing is
averaged. Each curve is the mean nats per token of every 25 steps, beside CPU seconds. Where both are right, the curves
differ no more than two seeds of one of them do: `--plain-seeds 2` shows that. A step takes some seconds on two cores;
`--tiny` is a model for trying this script out. Further arguments are overrides of the configuration. Results go to
benchmarks/results/ with --save.
"""

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from measuring import save, show
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import Config, load
from pipeline.corpus.manifest import read_manifest, write_manifest
from pipeline.corpus.stream import Window, read_windows
from pipeline.model.language_model import LanguageModel
from pipeline.runner import train
from pipeline.training.parts import build_model, open_split, settle_numerics
from pipeline.training.tiling import lane_plan

CURVE_STEPS = 25
TINY = (
    "model.embedding_size=32",
    "model.recurrence.hidden_size=48",
    "model.recurrence.last_size=32",
    "model.recurrence_init_scale=0.14",
    "stream.num_lanes=8",
    "stream.bptt=20",
)
PLAIN = ("stream.random_bptt=false", "optim.averaging=none")  # of the recipe, what the plain loop does not do


class Plain(nn.Module):
    """AWD-LSTM as one writes it with torch's own modules."""

    def __init__(self, config: Config, begun: LanguageModel) -> None:
        super().__init__()
        model, cell = config.model, config.model.recurrence
        self.drop, self.weight_drop = model.regularization, cell.weight_dropout
        sizes = [model.embedding_size, *[cell.hidden_size] * (cell.num_layers - 1), cell.last_size or cell.hidden_size]
        self.embedding = nn.Embedding(begun.vocab_size, model.embedding_size)
        self.layers = nn.ModuleList(nn.LSTM(*pair) for pair in pairwise(sizes))
        self.bias = nn.Parameter(torch.empty(begun.vocab_size))
        with torch.no_grad():  # the same weights
            self.embedding.weight.copy_(begun.embedding_VE)
            self.bias.copy_(begun.softmax.head_bias)
            for own, theirs in zip(self.layers, begun.recurrence.layers, strict=True):
                own.load_state_dict(theirs.state_dict())

    def forward(self, words: Tensor, state: list | None) -> tuple[Tensor, Tensor, list]:
        """(hidden vectors, the same with dropout, states) of a window of words [time, lanes]."""
        kept = torch.empty(self.embedding.num_embeddings, 1).bernoulli_(1 - self.drop.embedding_dropout)
        hidden = F.embedding(words, self.embedding.weight * kept / (1 - self.drop.embedding_dropout))
        hidden, states = locked(hidden, self.drop.input_dropout), []
        for k, layer in enumerate(self.layers):
            if k:
                hidden = locked(hidden, self.drop.layer_dropout)
            weight = F.dropout(layer.weight_hh_l0, self.weight_drop)
            before = None if state is None else state[k]
            hidden, after = torch.func.functional_call(layer, {"weight_hh_l0": weight}, (hidden, before))
            states.append(tuple(each.detach() for each in after))
        return hidden, locked(hidden, self.drop.output_dropout), states


def locked(input: Tensor, p: float) -> Tensor:
    """Dropout with one mask for all time steps."""
    return input * torch.empty_like(input[:1]).bernoulli_(1 - p) / (1 - p)


def plain_losses(config: Config, begun: LanguageModel, windows: Iterator[Window], *, seed: int) -> Iterator[float]:
    """Trains in a loop; gives the nats per token of each step."""
    torch.manual_seed(seed)
    model, state = Plain(config, begun), None
    optim, drop = config.optim, config.model.regularization
    optimizer = torch.optim.SGD(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    for window in windows:
        assert window.rows_N is None, "windows of an epoch's end are not for this loop; take fewer steps"
        hidden, dropped, state = model(torch.from_numpy(window.inputs_TL), None if window.starts_epoch else state)
        logits = F.linear(dropped.flatten(0, 1), model.embedding.weight, model.bias)
        nats = F.cross_entropy(logits, torch.from_numpy(window.targets_N))
        loss = nats + drop.activation * dropped.square().mean()
        loss = loss + drop.temporal * (hidden[1:] - hidden[:-1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or math.inf)
        optimizer.step()
        yield nats.item()


def without_held_out(data: str, to: Path) -> str:
    """The corpus with its training text alone, in a folder of its own: `train` validates what there is at its end."""
    to.mkdir()
    for name in ("train", "vocabulary.arrow"):
        (to / name).symlink_to(Path(data, name).resolve())
    write_manifest(read_manifest(data).only("train"), str(to))
    return str(to)


def run_plain(config: Config, *, steps: int, seed: int) -> tuple[list[float], float]:
    """(nats per token of each step, CPU seconds)."""
    data = str(config.data)
    manifest = read_manifest(data)
    begun = build_model(config.model, vocab_size=manifest.vocab_size)
    scales = {"init_scale": config.model.init_scale, "recurrence_init_scale": config.model.recurrence_init_scale}
    begun.draw_weights(seed=config.stream.seed, **scales)
    plan, tokens = lane_plan(config, manifest), open_split(data, manifest, "train")
    windows = read_windows(tokens, plan, start=0, stop=steps, lanes=range(plan.num_lanes))
    cpu_before, losses, begun_at = time.process_time(), [], time.monotonic()
    for nats in plain_losses(config, begun, windows, seed=seed):
        losses.append(nats)
        if len(losses) % CURVE_STEPS == 0:
            told = sum(losses[-CURVE_STEPS:]) / CURVE_STEPS
            print(f"plain: step {len(losses)}, {told:.4f} nats, {time.monotonic() - begun_at:.0f} s", flush=True)
    return losses, time.process_time() - cpu_before


def run_train(config: Config) -> tuple[list[float], float]:
    """(nats per token of each step, CPU seconds)."""
    cpu_before = time.process_time()
    train(config)
    cpu_seconds = time.process_time() - cpu_before
    lines = [json.loads(line) for line in Path(str(config.run), "metrics.jsonl").read_text().splitlines()]
    return [line["train/nats_per_token"] for line in lines if "train/nats_per_token" in line], cpu_seconds


def curve(losses: list[float]) -> list[float]:
    """The mean of every `CURVE_STEPS` steps; the last one may be of fewer."""
    parts = [losses[first : first + CURVE_STEPS] for first in range(0, len(losses), CURVE_STEPS)]
    return [sum(part) / len(part) for part in parts]


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a prepared corpus")
    parser.add_argument("overrides", nargs="*", help="key=value, as train takes them")
    parser.add_argument("--experiment", choices=["awd_wikitext2", "awd_ptb"], default="awd_wikitext2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plain-seeds", type=int, default=1, help="how often the plain loop runs, each with its seed")
    parser.add_argument("--tiny", action="store_true", help="a model of 48 units, 8 lanes of 20 words")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/awd-<date>.json")
    options = parser.parse_intermixed_args()
    common = [f"experiment={options.experiment}", f"max_steps={options.steps}"]
    told = ["logging.every_steps=1", "tracking.kind=none", "accelerator=cpu", "checkpoint.every_steps=1000000"]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settle_numerics()  # as `train` does
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = without_held_out(options.data, Path(folder, "data"))
        places = [f"data={data}", f"run={folder}/run"]
        typed = [*common, *places, *told, *PLAIN, *(TINY if options.tiny else ()), *options.overrides]
        config = load(Config, typed)
        for seed in range(1, options.plain_seeds + 1):
            found[f"plain, seed {seed}"] = run_plain(config, steps=options.steps, seed=seed)
        found["train"] = run_train(config)
    curves = {name: curve(losses) for name, (losses, _) in found.items()}
    ends = [min(first + CURVE_STEPS, options.steps) for first in range(0, options.steps, CURVE_STEPS)]
    rows = [[str(end), *(f"{each[i]:.4f}" for each in curves.values())] for i, end in enumerate(ends)]
    show(["step", *curves], [*rows, ["CPU s", *(f"{seconds:.1f}" for _, seconds in found.values())]])
    if options.save:
        kept = ["stream", "model", "optim"]
        save(
            "awd",
            {
                "experiment": options.experiment,
                "corpus": read_manifest(options.data).fingerprint,
                "steps": options.steps,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "configuration": {name: config.model_dump(mode="json")[name] for name in kept},
                "nats_per_token": curves,
                "cpu_seconds": {name: seconds for name, (_, seconds) in found.items()},
            },
        )


if __name__ == "__main__":
    main()
