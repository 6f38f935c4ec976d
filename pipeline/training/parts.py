"""What a run is made of, as its configuration says: the model, its tokens, their tiling, the numbers' kind.

In: sections of the configuration and the manifest. Out: the parts, and the run's identity. Refuses a split that is not
there, a device that is not there, more lanes than targets.
"""

import json

import torch

from pipeline.config import AdaptiveSoftmaxConfig, Config, FullSoftmaxConfig, ModelConfig, flat
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest
from pipeline.corpus.tokens import TokenSequence
from pipeline.errors import ConfigError, CorpusError
from pipeline.model.language_model import LanguageModel

CUTOFFS = (2000, 10000)  # where nobody gives any


def fitted_model(model: ModelConfig, *, vocab_size: int) -> ModelConfig:
    """The section with cutoffs, where it leaves them to the vocabulary: a softmax with no cutoff below it is full."""
    softmax = model.softmax
    if not isinstance(softmax, AdaptiveSoftmaxConfig) or softmax.cutoffs is not None:
        return model
    cutoffs = tuple(cutoff for cutoff in CUTOFFS if cutoff < vocab_size)
    fitted = softmax.model_copy(update={"cutoffs": cutoffs}) if cutoffs else FullSoftmaxConfig(kind="full")
    return model.model_copy(update={"softmax": fitted})


def build_model(model: ModelConfig, *, vocab_size: int) -> LanguageModel:
    """The model that the section describes; its weights are not drawn yet."""
    return LanguageModel(fitted_model(model, vocab_size=vocab_size), vocab_size=vocab_size)


def open_split(data: str, manifest: Manifest, split: str) -> TokenSequence:
    """The tokens of a split.

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


def run_identity(config: Config, manifest: Manifest, *, total_steps: int) -> dict[str, str]:
    """What must be equal when a run is resumed, by dotted key: what it computes, not where, how long or how watched."""
    values = flat(config)
    names = [name for name in values if name.startswith(("model.", "optim."))]
    names += ["init_from", "precision", "stream.num_lanes", "stream.bptt", "stream.seed", "stream.state"]
    if config.optim.schedule.kind == "plateau":
        names.append("checkpoint.validate_every_steps")
    identity = {name: json.dumps(values[name]) for name in names}
    identity |= {"corpus": manifest.fingerprint, "vocabulary": manifest.vocabulary_fingerprint}
    if config.optim.schedule.kind == "cosine":
        identity["total steps (optim.schedule.kind=cosine)"] = str(total_steps)
    return identity


def lane_plan(config: Config, manifest: Manifest) -> LanePlan:
    """The tiling of the training split.

    Raises:
        ConfigError: there are more lanes than targets.
    """
    return LanePlan(
        num_targets=manifest.splits["train"].num_tokens,
        num_lanes=config.stream.num_lanes,
        bptt=config.stream.bptt,
    )


def total_steps(config: Config, plan: LanePlan) -> int:
    """Optimizer steps of the whole run, whichever limit comes first."""
    by_epochs = config.max_epochs * plan.num_windows if config.max_epochs is not None else None
    return min(limit for limit in (by_epochs, config.max_steps) if limit is not None)
