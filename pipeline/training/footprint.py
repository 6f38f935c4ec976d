"""What a training step holds on a device, worked out without training: parameters, optimizer's state, activations.

In: sections of the configuration, the vocabulary's counts. Out: bytes. The weights of the whole model are never there:
the output layer runs on torch's device `meta`, which knows shapes alone, and the recurrence on a few lanes, since what
its kernels keep is theirs to know. So any cell and any output layer is counted, and a large one costs nothing.

Shape suffixes: T time, L lanes, N tokens, S dropout sites, H hidden, V vocabulary.
"""

import io
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import AdaptiveInputConfig, FullSoftmaxConfig, ModelConfig, OptimConfig, RecurrentConfig, recurrent
from pipeline.model.language_model import LanguageModel
from pipeline.run.plan import Parameters
from pipeline.training.optimization import build_optimizer
from pipeline.training.parts import build_model, choose_device

TRIED_LANES = 16  # from which on what a lane holds does not change any more
LIGHTNING_BYTES = 4_000  # of a checkpoint, for counters and the run's identity
TRIED_OPERATIONS = 3e10  # about half a second of a CPU


def shapes_of(section: ModelConfig, *, vocab_size: int) -> LanguageModel:
    """The model without numbers, on the device `meta`."""
    with torch.device("meta"):
        return build_model(section, vocab_size=vocab_size)


def count_parameters(model: LanguageModel) -> Parameters:
    """How many parameters there are, by part; what is shared counts for the first."""
    total = _num_elements(model.parameters())
    below = ("embedding_VE", "input.")
    embedding = _num_elements(each for name, each in model.named_parameters() if name.startswith(below))
    recurrence = _num_elements(model.recurrence.parameters())
    return Parameters(embedding=embedding, recurrence=recurrence, softmax=total - embedding - recurrence, total=total)


def weight_bytes(model: LanguageModel) -> int:
    """Of the parameters, and as much of their gradients."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def checkpoint_bytes(model: LanguageModel, optim: OptimConfig, *, num_lanes: int) -> int:
    """Size of a checkpoint: weights, the optimizer's state, the carried state of all lanes, and what the file adds.

    Args:
        model: as `shapes_of` gives it.
        optim: the optimizer's section.
        num_lanes: of the global batch.
    """
    carried = sum(each.numel() * each.element_size() for each in model.recurrence.zero_state(num_lanes))
    names = [name for name, _ in model.named_parameters()]
    file = io.BytesIO()  # a checkpoint whose tensors have one element, for what the file adds to each
    small = {name: torch.zeros(1) for name in names}
    means = {name: torch.zeros(1) for name in names if optim.averaging != "none"}
    torch.save([small, means, _stepped(optim, [1] * len(names)).state_dict()], file)
    tensors = weight_bytes(model) + optimizer_bytes(optim, model.parameters()) + carried
    return tensors + file.tell() + LIGHTNING_BYTES


def device_here(accelerator: str) -> str:
    """`cuda` or `cpu`: where a model is tried out; never refuses, as the run's own device may be elsewhere."""
    return choose_device("auto") if accelerator != "cpu" else "cpu"


def device_memory_bytes(device: str) -> int | None:
    """Memory of the GPU that is here; None of a CPU."""
    return int(torch.cuda.get_device_properties(0).total_memory) if device == "cuda" else None


def optimizer_bytes(optim: OptimConfig, parameters: Iterable[Tensor]) -> int:
    """The state that the optimizer keeps of the parameters: so much for each, and so much for each number in it.

    The parameters' mean counts as part of it, from the first step on, though it may come late.
    """
    small, large = (_state_bytes(optim, num_elements=number) for number in (1, 2))
    weights = list(parameters)
    means = sum(each.numel() * each.element_size() for each in weights if optim.averaging != "none")
    return means + sum(small + (large - small) * (each.numel() - 1) for each in weights)


def activation_bytes(
    section: ModelConfig, *, counts_V: NDArray[np.int64], bptt: int, bf16: bool, device: str
) -> Callable[[int], int]:
    """What the backward pass needs of the forward pass, beside the parameters: by the number of lanes on a device.

    Args:
        section: of the model, fitted to the vocabulary.
        counts_V: how often each word is a target; says how many fall into each cluster of an adaptive softmax.
        bptt: tokens of a lane in a step.
        bf16: whether the arithmetic is bf16.
        device: that runs the recurrence, `cpu` or `cuda`; the kernels of another may keep other things.
    """
    below = _recurrence_bytes(recurrent(section), bptt=bptt, bf16=bf16, device=device)
    model = shapes_of(section, vocab_size=len(counts_V))

    def held(lanes: int) -> int:
        words_N = expected_words(counts_V, lanes * bptt)
        return below(lanes) + sum(_softmax_sizes(model, words_N, counts_V, bf16=bf16, weights=bf16))

    return held


def backward_bytes(section: ModelConfig, *, counts_V: NDArray[np.int64], bptt: int, bf16: bool) -> Callable[[int], int]:
    """What the backward pass adds to all that the forward pass kept: by the number of lanes on a device.

    It begins with the gradient of the log-probabilities and that of the logits that they are of, each as large as they
    are. What it adds later is less than what it has given back by then.

    Args:
        section, counts_V, bptt, bf16: as of `activation_bytes`.
    """
    model = shapes_of(section, vocab_size=len(counts_V))

    def added(lanes: int) -> int:
        words_N = expected_words(counts_V, lanes * bptt)
        return 2 * max(_softmax_sizes(model, words_N, counts_V, bf16=bf16, weights=False), default=0)

    return added


def expected_words(counts_V: NDArray[np.int64], num_words: int) -> NDArray[np.int64]:
    """Word ids, rising, that share the words of a vocabulary as its counts do: int64 [num_words]."""
    seen_V = np.cumsum(np.maximum(counts_V, 0) if counts_V.any() else np.ones_like(counts_V))
    places_N = (np.arange(num_words) + 0.5) / num_words * seen_V[-1]
    words_N: NDArray[np.int64] = np.searchsorted(seen_V, places_N, side="right").astype(np.int64)
    return words_N


def autocast(device: str, *, bf16: bool) -> AbstractContextManager[object]:
    """The arithmetic of a forward pass, as Lightning's `bf16-mixed` has it."""
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()


def saved_sizes(forward: Callable[[], Iterable[Tensor]], *, known: Iterable[Tensor]) -> list[int]:
    """The bytes of each piece of memory that a forward pass leaves for its backward pass.

    Args:
        forward: the pass; what it gives back counts too.
        known: tensors that do not count, as they are there anyway.
    """
    there = {id(each): each for each in (tensor.untyped_storage() for tensor in known)}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # which stays alive, so that no other gets its id
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for tensor in forward():
            keep(tensor)
    return [storage.nbytes() for key, storage in kept.items() if key not in there]


def _recurrence_bytes(section: RecurrentConfig, *, bptt: int, bf16: bool, device: str) -> Callable[[int], int]:
    """Of input layer, recurrence and dropout, by the number of lanes: a straight line through two trials.

    They are tried with few words: a cluster of an adaptive input has one, and its width is what it is.
    """
    small = section.model_copy(update={"tied": False, "softmax": FullSoftmaxConfig(kind="full")})
    vocab_size = 2
    if isinstance(section.input, AdaptiveInputConfig) and section.input.cutoffs is not None:
        vocab_size = len(section.input.cutoffs) + 1
        few = section.input.model_copy(update={"cutoffs": tuple(range(1, vocab_size))})
        small = small.model_copy(update={"input": few})
    with torch.device(device):
        model = LanguageModel(small, vocab_size=vocab_size)
    operations = 2 * bptt * _num_elements(model.recurrence.parameters())
    most = max(2, min(TRIED_LANES, int(TRIED_OPERATIONS / operations)))

    def tried(lanes: int) -> int:
        inputs_TL = torch.zeros(bptt, lanes, dtype=torch.int64, device=device)
        num_keys = model.num_sites + model.num_shared_sites
        keys_SL = torch.zeros(num_keys, lanes, dtype=torch.int32, device=device)
        state = model.recurrence.zero_state(lanes)

        def forward() -> list[Tensor]:
            hidden_TLH, *_ = model.hidden_and_penalty(
                inputs_TL, state, keys_SL=keys_SL, num_targets=bptt * lanes, num_pairs=(bptt - 1) * lanes
            )
            return [hidden_TLH]

        with autocast(device, bf16=bf16):
            kept = saved_sizes(forward, known=model.parameters())
        return sum(kept)

    half, whole = tried(most // 2), tried(most)
    of_a_lane = (whole - half) / (most - most // 2)
    return lambda lanes: tried(lanes) if lanes < most else round(whole + of_a_lane * (lanes - most))


def _softmax_sizes(
    model: LanguageModel, words_N: NDArray[np.int64], counts_V: NDArray[np.int64], *, bf16: bool, weights: bool
) -> list[int]:
    """Of the output layer, without the hidden vectors that it reads; with its weights, as bf16 copies them, or not."""
    layer = model.softmax.bfloat16() if bf16 else model.softmax
    hidden_NH = torch.empty(
        len(words_N),
        model.recurrence.output_size,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        device="meta",
        requires_grad=True,
    )
    sample = layer.sampler(counts=lambda: counts_V, seed=0)
    targets = tuple(each.to("meta") for each in (*layer.prepare_targets(words_N), *sample(0, words_N)))
    known = [hidden_NH, *(() if weights else layer.parameters())]
    return saved_sizes(lambda: [layer.nats(hidden_NH, targets)], known=known)


def _state_bytes(optim: OptimConfig, *, num_elements: int) -> int:
    """Of a parameter of so many elements, after a step."""
    (state,) = _stepped(optim, [num_elements]).state.values() or ({},)
    return sum(each.numel() * each.element_size() for each in state.values() if isinstance(each, Tensor))


def _stepped(optim: OptimConfig, sizes: Iterable[int]) -> torch.optim.Optimizer:
    """The optimizer of parameters of so many elements, after a step."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(parameters, optim)
    optimizer.step()
    return optimizer


def _num_elements(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() for each in tensors)
