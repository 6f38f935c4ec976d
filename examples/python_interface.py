"""The whole path from Python: text → corpus → run → perplexity → model, in some seconds on a CPU.

`python examples/python_interface.py [FOLDER]` leaves a corpus and a run in the folder, a temporary one if none is
named. A second call in the same folder finds everything done.
"""

import random
import sys
import tempfile
from pathlib import Path

from pipeline import evaluate, load_config, load_model, prepare, train

FOLLOWERS = {  # of each word, those that may come next
    "the": ["cat", "dog", "bird"],
    "cat": ["sleeps", "sees"],
    "dog": ["barks", "sees"],
    "bird": ["sings", "sees"],
    "sees": ["the"],
}


def made_text(num_lines: int, *, seed: int) -> str:
    """Sentences such as `the dog sees the bird sings`."""
    generator = random.Random(seed)
    lines = []
    for _ in range(num_lines):
        words = ["the"]
        while words[-1] in FOLLOWERS:
            words.append(generator.choice(FOLLOWERS[words[-1]]))
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def main(folder: Path) -> None:
    """Makes a text in the folder, and a language model of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(("train", "valid", "test")):
        (folder / f"{split}.txt").write_text(made_text(1500 if split == "train" else 200, seed=seed))

    config = load_config(
        *(f"corpus.{split}={folder / split}.txt" for split in ("train", "valid", "test")),
        f"data={folder / 'data'}",
        f"run={folder / 'run'}",
        "model.embedding_size=16",
        "model.hidden_size=32",
        "model.num_layers=1",
        "stream.num_lanes=8",
        "stream.bptt=16",
        "optim=adam",
        "optim.lr=0.01",
        "max_epochs=4",
        "accelerator=cpu",
        "tracking.kind=none",
    )

    corpus = prepare(config)
    print(f"prepared {corpus.splits['train'].num_tokens:,} tokens of {corpus.vocab_size} words")

    result = train(config)
    print(f"trained to step {result.step} (from step {result.first_step})")

    scores = evaluate(result.run, split="test", accelerator="cpu")
    print(f"perplexity {scores.score.perplexity:.2f} on {scores.score.num_targets:,} tokens")
    print(f"perplexity {scores.unigram.perplexity:.2f} of a model that knows the words' shares only")

    trained = load_model(result.run)
    num_weights = sum(weights.numel() for weights in trained.model.parameters())
    print(f"the model of step {trained.step} has {num_weights:,} weights")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
