"""Small prepared corpora and configurations that the tests share; all text is made here."""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from support.typed import over
from support.vocabularies import count_words, cut_vocabulary, write_vocabulary

from pipeline.config import Config, load
from pipeline.corpus.manifest import Manifest, Shard, Split, write_manifest
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.vocabulary import merge_counts

pytest_plugins = ["support.worlds"]

MakeCorpus = Callable[..., str]

settings.register_profile("patient", deadline=None)  # a busy machine is no finding
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' tensors are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """A run flushes them for its whole process; the next test's floats are IEEE's again."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """An S3 of this session's own (moto), and a bucket there, `s3://bucket`: a test takes a name of its own below it.

    The environment leads to it, so that child processes find it too; a developer's own S3 is out of reach meanwhile.
    """
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("AWS_", "FSSPEC_")):
                patch.delenv(name)
        patch.delitem(fsspec.config.conf, "s3", raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def made_text(num_words: int, *, seed: int, num_types: int = 60) -> bytes:
    """Lines of words whose frequencies fall as in real text, and in which a word says something of the next."""
    generator = np.random.default_rng(seed)
    shares = 1 / np.arange(2, num_types + 2)
    drawn = generator.choice(num_types, size=num_words, p=shares / shares.sum())
    words = [f"w{(a + b // 2) % num_types}" for a, b in zip(drawn, np.roll(drawn, 1), strict=True)]
    lines = [" ".join(words[start : start + 11]) for start in range(0, num_words, 11)]
    return "".join(line + "\n" for line in lines).encode()


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """Prepares a corpus of made text through the library, without any task: (name, words of each split) → folder."""

    def make(name: str = "data", *, num_types: int = 60, shards: int = 2, **num_words: int) -> str:
        data = str(tmp_path / name)
        sizes = num_words or {"train": 1000, "valid": 150, "test": 170}
        texts = {split: made_text(size, seed=i, num_types=num_types) for i, (split, size) in enumerate(sizes.items())}
        words = {split: split_words(text, words="whitespace", lowercase=False) for split, text in texts.items()}
        vocabulary = cut_vocabulary(merge_counts([count_words(words["train"])]), size=None, min_count=1)
        write_vocabulary(vocabulary, f"{data}/vocabulary.arrow")
        splits = {}
        for split, array in words.items():
            written = []
            for i, ids in enumerate(np.array_split(vocabulary.encode(array), shards)):
                shard = f"{split}/{i:05}.arrow"
                receipt = write_shard(
                    f"{data}/{shard}",
                    [ids],
                    vocabulary_fingerprint=vocabulary.fingerprint,
                    vocab_size=vocabulary.size,
                    source=split,
                )
                written.append((shard, receipt))
            splits[split] = Split(
                shards=tuple(
                    Shard(
                        name=shard,
                        num_tokens=receipt.num_tokens,
                        size_bytes=receipt.size_bytes,
                        sha256=receipt.sha256,
                        source=split,
                    )
                    for shard, receipt in written
                ),
                num_tokens=sum(receipt.num_tokens for _, receipt in written),
                num_unk=sum(receipt.num_unk for _, receipt in written),
            )
        manifest = Manifest(
            splits=splits,
            vocab_size=vocabulary.size,
            vocabulary_fingerprint=vocabulary.fingerprint,
            configuration={},
            tool_version="0",
        )
        write_manifest(manifest, data)
        return data

    return make


@pytest.fixture
def small_config() -> Callable[..., Config]:
    """A configuration of a model that trains in a blink: (overrides) → Config."""

    def make(*overrides: str) -> Config:
        own_keys = {
            "model.recurrence": ["model.recurrence.hidden_size=5"],
            "model.softmax": ["model.softmax.cutoffs=[10,30]", "model.softmax.div_value=2"],
        }
        for place in [*own_keys]:
            if any(each.startswith(f"{place}.kind=") for each in overrides):
                del own_keys[place]  # of another kind, which has other keys
        return load(
            Config,
            over(
                [
                    "stream.num_lanes=3",
                    "stream.bptt=7",
                    "model.embedding_size=6",
                    "model.dropout=0.3",
                    *chain.from_iterable(own_keys.values()),
                    "optim=adam",
                    "optim.lr=0.01",
                    "logging.every_steps=1",
                    "logging.progress=false",
                    "tracking.kind=none",
                    "accelerator=cpu",
                    "checkpoint.every_steps=1000",
                ],
                *overrides,
            ),
        )

    return make
