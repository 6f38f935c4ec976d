"""The first steps of `experiment=text8_grave`: ours, plain PyTorch's of the same recipe, and ours with a full softmax.

`python benchmarks/text8.py DATA` reads the train split of a corpus that `prepare experiment=text8_grave` has made, or
of another one, in the same order for all:

- `adaptive`: `train experiment=text8_grave`, the whole of it: a checkpoint each round, metrics each `--every` steps;
- `plain`: nn.Embedding, nn.LSTM, nn.AdaptiveLogSoftmaxWithLoss with the same cutoffs and widths, torch.optim.Adagrad
  with the same warm-up and clip, weights drawn from the same range; a for loop, nothing is logged or saved. Torch's
  adaptive softmax has no biases in its tails, and its gradient for a cluster without targets is none instead of zero;
- `full`: as the first, with `model.softmax.kind=full`; for fewer steps, since each takes several times longer.

They take turns, `--round-steps` each. The table has nats per token, the mean over each `--every` steps; below it stand
what all steps of each took, with its start and its checkpoints. Results go to benchmarks/results/ with --save.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import save, show
from torch import nn

from pipeline.config import Config, load
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest, write_manifest
from pipeline.corpus.stream import read_windows
from pipeline.corpus.tokens import TokenSequence
from pipeline.runner import train
from pipeline.training.parts import open_split, settle_numerics
from pipeline.training.tiling import fitted_model

RECIPE = "experiment=text8_grave"


class Plain(nn.Module):
    """The model as one writes it with torch's own modules."""

    def __init__(self, config: Config, *, vocab_size: int) -> None:
        super().__init__()
        model = fitted_model(config.model, vocab_size=vocab_size)
        width, softmax = model.recurrence.hidden_size, model.softmax
        self.embedding = nn.Embedding(vocab_size, model.embedding_size)
        self.lstm = nn.LSTM(model.embedding_size, width)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            width, vocab_size, list(softmax.cutoffs), div_value=softmax.div_value, head_bias=True
        )
        for each in self.parameters():
            nn.init.uniform_(each, -model.init_scale, model.init_scale)


class PlainLoop:
    """The loop that users write, over the windows that ours reads."""

    def __init__(self, config: Config, tokens: TokenSequence, *, vocab_size: int) -> None:
        torch.manual_seed(1)
        self.tokens, self.optim, self.lanes = tokens, config.optim, config.stream.num_lanes
        self.plan = LanePlan(num_targets=len(tokens), num_lanes=self.lanes, bptt=config.stream.bptt)
        self.model = Plain(config, vocab_size=vocab_size)
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None
        self.nats: list[float] = []

    def run(self, stop: int) -> None:
        """Trains up to a step."""
        windows = read_windows(self.tokens, self.plan, start=len(self.nats), stop=stop, lanes=range(self.lanes))
        for window in windows:
            for group in self.optimizer.param_groups:
                group["lr"] = self.optim.lr * min(1.0, (window.step + 1) / self.optim.schedule.warmup_steps)
            hidden, state = self.model.lstm(self.model.embedding(torch.from_numpy(window.inputs_TL)), self.state)
            loss = self.model.softmax(hidden.flatten(0, 1), torch.from_numpy(window.targets_N)).loss
            self.state = (state[0].detach(), state[1].detach())
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip_norm)
            self.optimizer.step()
            self.nats.append(loss.item())


def ours(data: str, run: str, *more: str, every: int) -> Config:
    """The recipe, of our own."""
    quiet = ["accelerator=cpu", "tracking.kind=none", "logging.progress=false"]
    kept = ["max_epochs=null", f"logging.every_steps={every}", "checkpoint.every_steps=1000000"]
    return load(Config, [RECIPE, f"data={data}", f"run={run}", *quiet, *kept, *more])


def train_only(data: str, to: str) -> None:
    """A corpus of the train split alone, whose shards are linked, so that nothing is validated."""
    Path(to).mkdir()
    for name in ("train", "vocabulary.arrow"):
        Path(to, name).symlink_to(Path(data, name).resolve())
    write_manifest(read_manifest(data).only("train"), to)


def means(nats: list[float], *, every: int) -> list[float]:
    """Of so many steps each."""
    return [sum(nats[start : start + every]) / every for start in range(0, len(nats), every)]


def main() -> None:
    """Trains all sides in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder of the prepared corpus")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--full-steps", type=int, default=100, help="0: without the full softmax")
    parser.add_argument("--round-steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/text8-<date>.json")
    options = parser.parse_args()
    for name in ("steps", "full_steps", "round_steps"):
        if (found := getattr(options, name)) % options.every:
            parser.error(f"--{name.replace('_', '-')} {found} is no multiple of --every {options.every}")
    settle_numerics()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/data"
        train_only(options.data, data)
        manifest = read_manifest(data)
        recipe, every = ours(data, f"{folder}/run", "max_steps=1", every=options.every), options.every
        loop = PlainLoop(recipe, open_split(data, manifest, "train"), vocab_size=manifest.vocab_size)
        if options.steps >= loop.plan.num_windows:
            parser.error(
                f"--steps {options.steps} is more than the corpus has full windows, {loop.plan.num_windows - 1}"
            )

        def side(name: str, *more: str) -> Callable[[int], object]:
            return lambda stop: train(ours(data, f"{folder}/{name}", f"max_steps={stop}", *more, every=every))

        sides = {
            "adaptive": (side("adaptive"), options.steps),
            "plain": (loop.run, options.steps),
            "full": (side("full", "model.softmax.kind=full"), options.full_steps),
        }
        cost = {name: {"cpu_seconds": 0.0, "wall_seconds": 0.0} for name, (_, last) in sides.items() if last}
        for start in range(0, max(options.steps, options.full_steps), options.round_steps):
            for name, (run, last) in sides.items():
                stop = min(start + options.round_steps, last)
                if stop <= start:
                    continue
                cpu, wall = time.process_time(), time.perf_counter()
                run(stop)
                cost[name]["cpu_seconds"] += time.process_time() - cpu
                cost[name]["wall_seconds"] += time.perf_counter() - wall
                print(f"{name}: {stop} of {last} steps, {cost[name]['cpu_seconds']:,.0f} CPU s", flush=True)
        curves = {"plain": means(loop.nats, every=every)}
        for name in cost.keys() - curves.keys():
            records = map(json.loads, Path(folder, name, "metrics.jsonl").read_text().splitlines())
            curves[name] = [each["train/nats_per_token"] for each in records if "train/nats_per_token" in each]
        curves = {name: curves[name] for name in cost}
    steps = {name: sides[name][1] for name in cost}
    rows = [
        [str((place + 1) * every), *(f"{curve[place]:.3f}" if place < len(curve) else "" for curve in curves.values())]
        for place in range(max(map(len, curves.values())))
    ]
    rows += [
        [f"{kind} ms/step", *(f"{1000 * cost[name][f'{kind}_seconds'] / steps[name]:,.0f}" for name in cost)]
        for kind in ("cpu", "wall")
    ]
    show(("nats up to step", *cost), rows)
    if options.save:
        shape = {
            "vocab_size": manifest.vocab_size,
            "tokens": len(loop.tokens),
            "warmup": recipe.optim.schedule.warmup_steps,
        }
        result = {"torch": torch.__version__, "threads": torch.get_num_threads(), **shape, "every": every}
        save("text8", {**result, "steps": steps, "nats_per_token": curves, "cost": cost})


if __name__ == "__main__":
    main()
