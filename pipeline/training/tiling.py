"""What follows from the configuration and the manifest alone: how the text is tiled, how long a run is, what it is.

Imports no torch, so that a command is quick.
"""

import json

from pipeline.config import (
    AdaptiveInputConfig,
    AdaptiveSoftmaxConfig,
    Config,
    FullInputConfig,
    FullSoftmaxConfig,
    ModelConfig,
    RecurrentConfig,
    flat,
    recurrent,
)
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest
from pipeline.corpus.order import Order
from pipeline.errors import ConfigError
from pipeline.masking import without_credentials

CUTOFFS = (2000, 10000)  # where nobody gives any


def fitted_model(model: ModelConfig, *, vocab_size: int) -> RecurrentConfig:
    """The section with cutoffs, where it leaves them to the vocabulary: with no cutoff below it a layer is full.

    An adaptive input has those of an adaptive softmax.

    Raises:
        ConfigError: a given cutoff is beyond the vocabulary, or the model is none that is trained in steps.
    """
    model = recurrent(model)
    cutoffs = tuple(cutoff for cutoff in CUTOFFS if cutoff < vocab_size)
    input, softmax = model.input, model.softmax
    if isinstance(softmax, AdaptiveSoftmaxConfig):
        softmax.check_vocabulary(vocab_size)
        cutoffs = softmax.cutoffs or cutoffs
        softmax = softmax.model_copy(update={"cutoffs": cutoffs}) if cutoffs else FullSoftmaxConfig(kind="full")
    if isinstance(input, AdaptiveInputConfig):
        input.check_vocabulary(vocab_size)
        cutoffs = input.cutoffs or cutoffs
        input = input.model_copy(update={"cutoffs": cutoffs}) if cutoffs else FullInputConfig(kind="full")
    return model.model_copy(update={"input": input, "softmax": softmax})


def run_identity(config: Config, manifest: Manifest, *, total_steps: int) -> dict[str, str]:
    """What must be equal when a run is resumed, by dotted key: what it computes, not where, how long or how watched.

    Args:
        config: of the run, with its model fitted to the vocabulary.
        manifest: of its corpus.
        total_steps: of the run; part of the identity where the learning rate depends on it.
    """
    values = flat(config)
    names = [name for name in values if name.startswith(("model.", "optim."))]
    names += ["init_from", "precision", "stream.num_lanes", "stream.bptt", "stream.seed", "stream.state"]
    names += ["stream.random_bptt", "stream.order"]
    if config.stream.order == "blocks":
        names.append("stream.block_tokens")
    if config.optim.schedule.kind == "plateau" or config.optim.averaging == "nonmonotone":
        names.append("checkpoint.validate_every_steps")
    if config.init_from is not None:
        values["init_from"] = without_credentials(config.init_from)
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
        window_seed=config.stream.seed if config.stream.random_bptt else None,
    )


def epoch_order(config: Config, manifest: Manifest) -> Order:
    """In which order an epoch reads the training split.

    Raises:
        ConfigError: there are fewer than two whole blocks, so that none could change its place.
    """
    num_tokens, stream = manifest.splits["train"].num_tokens, config.stream
    if stream.order == "sequential":
        return Order(num_tokens=num_tokens)
    order = Order(num_tokens=num_tokens, block_tokens=stream.block_tokens, seed=stream.seed)
    if order.num_blocks < 2:
        most = num_tokens // 2
        mend = f"stream.block_tokens={most} or less, or " if most >= stream.bptt else ""
        raise ConfigError(
            f"stream.block_tokens={stream.block_tokens} makes fewer than 2 whole blocks of the corpus' {num_tokens}"
            f" targets, so that there is nothing to put in another order; use {mend}stream.order=sequential"
        )
    return order


def total_steps(config: Config, plan: LanePlan) -> int:
    """Optimizer steps of the whole run, whichever limit comes first."""
    by_epochs = config.max_epochs * plan.num_windows if config.max_epochs is not None else None
    return min(limit for limit in (by_epochs, config.max_steps) if limit is not None)
