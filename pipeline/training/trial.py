"""How long a training step takes: a few steps of a model that is thrown away, on words drawn as the corpus has them.

In: the configuration, the vocabulary's counts, a device. Out: seconds, and how many lanes were tried, or nothing. Steps
of few lanes come first and grow while there is time and memory; where all lanes would take too much, the rest is a
straight line. Nothing is read or written.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Config, recurrent
from pipeline.model.language_model import LanguageModel
from pipeline.model.output_layer import Sampler
from pipeline.training.footprint import autocast, expected_words
from pipeline.training.optimization import build_optimizer
from pipeline.training.parts import build_model

GROWTH = 4  # of the lanes from trial to trial


class Trial(NamedTuple):
    """Seconds of a step, by steps of at most so many lanes."""

    seconds: float
    tried_lanes: int


def try_steps(
    config: Config,
    *,
    counts_V: NDArray[np.int64],
    lanes: int,
    device: str,
    num_threads: int,
    budget_seconds: float,
    limit_seconds: float,
) -> Trial | None:
    """How long a training step takes on one device; None: there was not the time or the memory to find out.

    Args:
        config: of the run, its model fitted to the vocabulary.
        counts_V: how often each word is a target.
        lanes: rows of the batch on the device.
        device: `cpu` or `cuda`.
        num_threads: of torch on the CPU.
        budget_seconds: for the steps, so that they are many.
        limit_seconds: for the model and the fewest steps that tell anything.
    """
    began, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        step = _stepper(config, counts_V=counts_V, device=device)
        left = limit_seconds - (time.perf_counter() - began)
        return extrapolated(
            lambda size: _timed(step, size), lanes=lanes, budget_seconds=min(budget_seconds, left), limit_seconds=left
        )
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.set_num_threads(before)


def extrapolated(
    trial: Callable[[int], float], *, lanes: int, budget_seconds: float, limit_seconds: float
) -> Trial | None:
    """How long a step of so many lanes takes, by trials of fewer where there is no time or memory for as many.

    None: there is not enough for the fewest that make a straight line: two steps of one lane, and one of a few.

    Args:
        trial: makes a step of some lanes and gives its seconds.
        lanes: rows of the batch.
        budget_seconds: for all trials, as far as they are more than the fewest.
        limit_seconds: for the fewest; at least as many.
    """
    found: dict[int, list[float]] = {}
    with suppress(torch.OutOfMemoryError):
        _grow(trial, found, lanes=lanes, budget_seconds=budget_seconds, limit_seconds=limit_seconds)
    if not _enough(found, lanes):
        return None
    return Trial(_on_line({size: median(seconds) for size, seconds in found.items()}, lanes), max(found))


def _grow(
    trial: Callable[[int], float],
    found: dict[int, list[float]],
    *,
    lanes: int,
    budget_seconds: float,
    limit_seconds: float,
) -> None:
    """Tries more and more lanes, and those that are wanted again and again, as long as there is time for the next."""
    if limit_seconds <= 0:
        return
    spent, size = trial(1), 1  # in which memory is laid out and kernels are chosen: the next is no slower
    wanted_seconds = spent
    while spent + wanted_seconds <= (budget_seconds if _enough(found, lanes) else limit_seconds):
        seconds = trial(size)
        found.setdefault(size, []).append(seconds)
        spent += seconds
        larger = min(lanes, size * GROWTH)
        size, wanted_seconds = larger, seconds * larger / size


def _enough(found: Mapping[int, object], lanes: int) -> bool:
    """Whether there are two sizes, which make a line, or the one that is wanted."""
    return len(found) > min(1, lanes - 1)


def _on_line(seconds: dict[int, float], lanes: int) -> float:
    """Through the two largest numbers of lanes that were tried; never less than the largest took."""
    *others, largest = sorted(seconds)
    if largest == lanes:
        return seconds[largest]
    of_a_lane = (seconds[largest] - seconds[others[-1]]) / (largest - others[-1])
    return seconds[largest] + max(0.0, of_a_lane) * (lanes - largest)


def _timed(step: Callable[[int], None], lanes: int) -> float:
    began = time.perf_counter()
    step(lanes)
    return time.perf_counter() - began


def _stepper(config: Config, *, counts_V: NDArray[np.int64], device: str) -> Callable[[int], None]:
    """A training step of some lanes, as `LanguageModelModule` makes it, which returns once the device has made it."""
    bptt, bf16 = config.stream.bptt, config.precision == "bf16"
    with torch.device(device):
        model = build_model(config.model, vocab_size=len(counts_V))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(recurrent(config.model).init_scale)  # drawing them would take longer than the steps
    optimizer = build_optimizer(model.parameters(), config.optim)
    sample = model.softmax.sampler(counts=lambda: counts_V, seed=config.stream.seed)
    words = np.random.default_rng(0).permutation(expected_words(counts_V, bptt * config.stream.num_lanes))

    def step(lanes: int) -> None:
        words_N = words[: bptt * lanes]
        with autocast(device, bf16=bf16):
            loss = _nats(model, words_N, sample=sample, lanes=lanes, device=device) / len(words_N)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def _nats(
    model: LanguageModel, words_N: NDArray[np.int64], *, sample: Sampler, lanes: int, device: str
) -> torch.Tensor:
    """The loss of a window whose words are their own targets."""
    prepared = (*model.softmax.prepare_targets(words_N), *sample(0, words_N))
    targets = tuple(each.to(device) for each in prepared)
    num_keys = model.num_sites + model.num_shared_sites
    keys_SL = torch.zeros(num_keys, lanes, dtype=torch.int32, device=device)
    inputs_TL = torch.from_numpy(words_N).view(-1, lanes).to(device)
    hidden_TLH, penalty, _ = model.hidden_and_penalty(
        inputs_TL,
        model.recurrence.zero_state(lanes),
        keys_SL=keys_SL,
        num_targets=len(words_N),
        num_pairs=len(words_N) - lanes,
    )
    total_nats: torch.Tensor = model.nats(hidden_TLH, targets).sum()
    return total_nats if penalty is None else total_nats + penalty
