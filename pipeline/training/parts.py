"""What a run is made of, as its configuration says: the model, its tokens, the numbers' kind.

In: sections of the configuration and the manifest. Out: the parts. Refuses a split or a device that is not there.
"""

import torch

from pipeline.config import ModelConfig
from pipeline.corpus.cache import ShardCache
from pipeline.corpus.manifest import Manifest
from pipeline.corpus.tokens import MOST_OPEN, TokenSequence
from pipeline.errors import ConfigError, CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.training.tiling import fitted_model


def build_model(model: ModelConfig, *, vocab_size: int) -> LanguageModel:
    """The model that the section describes; its weights are not drawn yet."""
    return LanguageModel(fitted_model(model, vocab_size=vocab_size), vocab_size=vocab_size)


def open_split(
    data: str, manifest: Manifest, split: str, *, cache: ShardCache | None = None, num_lanes: int = 1
) -> TokenSequence:
    """The tokens of a split.

    Args:
        data: the corpus folder.
        manifest: of the corpus.
        split: its name.
        cache: of a remote corpus; None: its shards are read into memory.
        num_lanes: that read from it here.

    Raises:
        CorpusError: the corpus has no such split.
    """
    if split not in manifest.splits:
        raise CorpusError(f"split={split} is not in data={data}; use one of {', '.join(manifest.splits)}")
    return TokenSequence(
        data,
        shards=manifest.splits[split].shards,
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        vocab_size=manifest.vocab_size,
        cache=cache,
        most_open=MOST_OPEN if cache is None else min(2 * num_lanes, MOST_OPEN),  # at a joint a lane has two
    )


def settle_numerics(*, bf16: bool = False) -> None:
    """Makes fp32 mean fp32, and small numbers no slower than others; for the process, before its first tensor work.

    Args:
        bf16: whether the CPU is to compute in bf16, which oneDNN's LSTM refuses on a CPU without AVX-512.
    """
    torch.backends.cudnn.allow_tf32 = False  # torch runs cuDNN's LSTM in TF32 unless told otherwise
    torch.set_flush_denormal(True)  # a CPU takes some ten times longer for numbers that are next to zero
    torch.backends.mkldnn.enabled = not bf16 or bf16_is_native()  # type: ignore[assignment]


def bf16_is_native() -> bool:
    """Whether oneDNN computes in bf16 on this CPU; where it does not, torch's own kernels do, and slowly."""
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(there and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_device(accelerator: str) -> str:
    """`cuda` or `cpu`; `auto` takes a CUDA device if there is one.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("accelerator=cuda finds no CUDA device; use accelerator=auto or accelerator=cpu")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
