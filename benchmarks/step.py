"""Words per second of `train` beside a plain PyTorch loop of the same model, interleaved in one run.

`python benchmarks/step.py` trains V=10,000, 2 x 200, 20 lanes x 35 (adaptive softmax, Adagrad) on made text:

- `plain`: nn.Embedding, nn.LSTM, nn.AdaptiveLogSoftmaxWithLoss, a for loop; ids in memory, nothing logged or saved;
- `train`: the whole of `python -m jobs train`: Lightning, token shards, metrics.jsonl, Weights & Biases offline, a
  checkpoint in the middle of each round (150 steps; the default interval is 1000).

Both take turns; the table shows each round and the ratio of the sums. Results go to benchmarks/results/ with --save.
"""

import argparse
import json
import logging
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.config import Config, load
from pipeline.corpus.manifest import Manifest, Shard, Split, read_manifest, write_manifest
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.vocabulary import BATCH_ROWS, SPECIAL, Vocabulary, table_of, write_words
from pipeline.runner import train
from pipeline.training.parts import choose_device, open_split

VOCAB, WIDTH, LANES, BPTT, CUTOFFS = 10_000, 200, 20, 35, (2000,)
ROUND_STEPS = 300


def make_corpus(data: str, *, num_tokens: int) -> None:
    """A prepared corpus of words drawn by Zipf's law."""
    import pyarrow as pa

    generator = np.random.default_rng(0)
    shares = 1 / np.arange(3, VOCAB + 1)
    ids = generator.choice(VOCAB - 2, size=num_tokens, p=shares / shares.sum()) + 2
    names = pa.array([f"w{i:05}" for i in range(2, VOCAB)])
    vocabulary = Vocabulary(words=pa.concat_arrays([SPECIAL, names]), counts=np.array([0, 0, *[1] * len(names)]))
    table = table_of(vocabulary.words, vocabulary.counts)
    write_words([table], f"{data}/vocabulary.arrow", index_path=None, batch_rows=BATCH_ROWS)
    receipt = write_shard(
        f"{data}/train/00000.arrow",
        [ids],
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocab_size=vocabulary.size,
        source="made",
    )
    shard = Shard(
        name="train/00000.arrow",
        num_tokens=receipt.num_tokens,
        size_bytes=receipt.size_bytes,
        sha256=receipt.sha256,
        source="made",
    )
    write_manifest(
        Manifest(
            splits={"train": Split(shards=(shard,), num_tokens=receipt.num_tokens, num_unk=receipt.num_unk)},
            vocab_size=vocabulary.size,
            vocabulary_fingerprint=vocabulary.fingerprint,
            configuration={},
            tool_version="benchmark",
        ),
        data,
    )


class Plain(nn.Module):
    """The model as one writes it with torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, VOCAB, list(CUTOFFS), div_value=4, head_bias=True)


class PlainLoop:
    """The loop that users write: truncated BPTT over a matrix of ids."""

    def __init__(self, ids: np.ndarray, device: str, precision: str) -> None:
        self.device, self.precision = device, precision
        rows = len(ids) // LANES
        self.ids_TL = torch.from_numpy(ids[: rows * LANES]).view(LANES, rows).t().contiguous().to(device)
        self.model = Plain().to(device)
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.Adagrad(parameters, lr=0.1, fused=device == "cpu")
        self.state: tuple[torch.Tensor, torch.Tensor] | None = None
        self.place = 0

    def run(self, num_steps: int) -> float:
        """Trains; returns words per second."""
        start = time.perf_counter()
        for _ in range(num_steps):
            inputs = self.ids_TL[self.place : self.place + BPTT]
            targets = self.ids_TL[self.place + 1 : self.place + BPTT + 1]
            self.place += BPTT
            with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16"):
                hidden, state = self.model.lstm(self.model.embedding(inputs), self.state)
                loss = self.model.softmax(hidden.flatten(0, 1), targets.flatten()).loss
            self.state = (state[0].detach(), state[1].detach())
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return num_steps * LANES * BPTT / (time.perf_counter() - start)


def train_round(folder: str, *, last_step: int, device: str, precision: str, tracking: str) -> float:
    """One more round of `train`; words per second over its logged steps, its checkpoint included."""
    start = last_step - ROUND_STEPS
    train(
        load(
            Config,
            [
                f"data={folder}/data",
                f"run={folder}/run",
                f"max_steps={last_step}",
                "optim=adagrad",
                f"model.softmax.cutoffs=[{','.join(map(str, CUTOFFS))}]",
                f"accelerator={device}",
                f"precision={precision}",
                f"tracking.kind={tracking}",
                "logging.progress=false",
                f"checkpoint.every_steps={ROUND_STEPS // 2}",
            ],
        )
    )
    lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line)["speed/tokens_per_second"] for line in lines if json.loads(line)["step"] > start]
    return len(speeds) / sum(1 / speed for speed in speeds)


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tracking", choices=["wandb", "none"], default="wandb")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/step-<device>-<date>.json")
    options = parser.parse_args()
    device = choose_device(options.accelerator)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        num_tokens = (options.rounds + 1) * ROUND_STEPS * LANES * BPTT + 1
        make_corpus(f"{folder}/data", num_tokens=num_tokens)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        manifest = read_manifest(f"{folder}/data")
        loop = PlainLoop(open_split(f"{folder}/data", manifest, "train").read(0, num_tokens), device, options.precision)
        loop.run(20)
        print(f"{'round':>5} {'plain':>10} {'train':>10} {'train/plain':>12}   words/s, {device}, {options.precision}")
        for i in range(1, options.rounds + 1):
            plain = loop.run(ROUND_STEPS)
            ours = train_round(
                folder,
                last_step=i * ROUND_STEPS,
                device=device,
                precision=options.precision,
                tracking=options.tracking,
            )
            rounds.append({"plain": plain, "train": ours})
            print(f"{i:>5} {plain:>10,.0f} {ours:>10,.0f} {ours / plain:>12.3f}", flush=True)
    ratio = sum(1 / each["plain"] for each in rounds) / sum(1 / each["train"] for each in rounds)
    print(f"ratio of all rounds: {ratio:.3f}")
    if options.save:
        kind = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU cores"
        result = {
            "date": date.today().isoformat(),
            "machine": kind,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "precision": options.precision,
            "shape": {"vocab_size": VOCAB, "layers": 2, "hidden": WIDTH, "lanes": LANES, "bptt": BPTT},
            "words_per_second": rounds,
            "ratio": ratio,
        }
        path = Path(__file__).parent / "results" / f"step-{device}-{date.today().isoformat()}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
