"""Dynamic evaluation: it is the formula word for word, scores before it learns, and leaves the model as it was."""

import itertools
from functools import partial

import pytest
import torch
from support.sequences import Ids
from support.small_models import VOCAB, small_ids, small_model

from pipeline.config import DynamicConfig, NeuralCacheConfig
from pipeline.scoring import perplexity
from pipeline.scoring.dynamic import dynamic_protocol, learning_rates, read_dynamic
from pipeline.scoring.neural_cache import cached_nats
from pipeline.scoring.perplexity import plain_nats, score

TRAIN = small_ids(61, seed=7)


def section(**changes):
    fields = {"lr": 0.01, "decay": 0.3, "epsilon": 0.02, "segment": 4, "num_lanes": 3, "num_windows": 5}
    return DynamicConfig(**fields | changes)


def dynamic(model, tokens, options, *, train=TRAIN):
    reads = read_dynamic(model, options, learning_rates(model, options, train), tokens)
    return torch.cat([each.nats_N for each in reads])


def sequence_nats(model, inputs, targets, state):
    """Of some words of one lane, from all log-probabilities."""
    hidden, state = model.hidden(torch.tensor(inputs)[:, None], state)
    log_probabilities = model.softmax.log_probabilities(hidden[:, 0])
    return -log_probabilities[torch.arange(len(targets)), torch.tensor(targets)], state


def loop(model, ids, options):
    """The formula as the paper has it, lane by lane and segment by segment."""
    ids, train = ids.tolist(), TRAIN.ids.tolist()
    origin = [each.detach().clone() for each in model.parameters()]
    learner = small_model()
    lanes, length = options.num_lanes, options.segment
    bounds = [lane * len(train) // lanes for lane in range(lanes + 1)]
    longest = max(end - begin for begin, end in itertools.pairwise(bounds))
    num_windows = min(options.num_windows, -(-longest // length))
    squares = [torch.zeros_like(each) for each in origin]
    states = [learner.recurrence.zero_state(1)] * lanes
    for window in range(num_windows):
        nats = []
        for lane in range(lanes):
            begin = bounds[lane] + window * length
            end = min(begin + length, bounds[lane + 1])
            if begin < end:
                inputs = [0, *train][begin:end]
                found, state = sequence_nats(learner, inputs, train[begin:end], states[lane])
                states[lane] = tuple(each.detach() for each in state)
                nats.append(found)
        gradients = torch.autograd.grad(torch.cat(nats).mean(), list(learner.parameters()))
        squares = [square + gradient**2 for square, gradient in zip(squares, gradients, strict=True)]
    roots = [(square / num_windows) ** 0.5 for square in squares]
    mean = sum(root.mean() for root in roots) / len(roots)
    state, scored = learner.recurrence.zero_state(1), []
    for begin in range(0, len(ids), length):
        end = min(begin + length, len(ids))
        nats, state = sequence_nats(learner, [0, *ids][begin:end], ids[begin:end], state)
        state = tuple(each.detach() for each in state)
        scored.append(nats.detach())
        gradients = torch.autograd.grad(nats.mean(), list(learner.parameters()))
        with torch.no_grad():
            for now, *others in zip(learner.parameters(), origin, roots, gradients, strict=True):
                first, root, gradient = others
                at_most = float("inf") if options.decay == 0 else 1 / options.decay
                decay = options.decay * (root / mean).clamp(max=at_most)
                now.add_(decay * (first - now) - options.lr * gradient / (root + options.epsilon))
    return torch.cat(scored)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decay": 0.0},
        {"decay": 2.0},  # most of the weights are at the bound of 1
        {"num_windows": 500},  # the whole text, whose last window some lanes lack
        {"segment": 7, "num_lanes": 1},
        {"segment": 1},
        {"segment": 50},  # one, of all the text
    ],
)
def test_it_is_the_formula(changes):
    options, tokens = section(**changes), small_ids(37)
    model = small_model()
    torch.testing.assert_close(dynamic(model, tokens, options), loop(model, tokens.ids, options), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tied", [False, True])
def test_a_rate_of_zero_is_the_plain_model_exactly(monkeypatch, tied):
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", 4)  # the sums of a segment, in the same order
    model, tokens = small_model(tied=tied), small_ids(33)
    plain = torch.cat(list(plain_nats(model, tokens)))
    for decay in (0.0, 0.3, 5.0):
        assert torch.equal(dynamic(model, tokens, section(lr=0.0, decay=decay)), plain)


def test_a_segment_is_scored_before_it_is_learnt_from():
    """Up to and in a segment, nothing of its score depends on what follows; and it does depend on what came before."""
    model, ids = small_model(), small_ids(40).ids
    whole = dynamic(model, Ids(ids), section())
    for place in (0, 3, 4, 17, 30):
        other = ids.copy()
        other[place:] = (ids[place:] + 1 + place) % VOCAB
        changed = dynamic(model, Ids(other), section())
        assert torch.equal(whole[:place], changed[:place])
        assert not torch.isclose(whole[place:], changed[place:], rtol=1e-6).all()
    first = torch.cat(list(plain_nats(model, Ids(ids[:4]))))
    torch.testing.assert_close(whole[:4], first, rtol=1e-12, atol=0)  # by the trained weights
    plain = torch.cat(list(plain_nats(model, Ids(ids))))
    assert not torch.isclose(whole[4:8], plain[4:8], rtol=1e-6).any()


def test_the_model_stays_as_it_was_and_a_second_score_is_the_same():
    model, tokens, options = small_model(dropout=0.5), small_ids(33), section()
    dry = small_model()
    before, state = {name: each.clone() for name, each in model.state_dict().items()}, torch.get_rng_state()
    first = dynamic(model, tokens, options)
    assert torch.equal(dynamic(model, tokens, options), first)
    assert torch.equal(dynamic(dry, tokens, options), first)  # nothing is dropped
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters()) and not model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("window_tokens", [1, 3, 4, 10, 33, 1000])
def test_it_does_not_depend_on_the_windows(monkeypatch, window_tokens):
    model, tokens, options = small_model(), small_ids(33), section()
    whole, rates = dynamic(model, tokens, options), learning_rates(model, options, TRAIN)
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", window_tokens)
    parts = [each.nats_N for each in read_dynamic(model, options, rates, tokens)]
    assert [len(part) for part in parts] == [window_tokens] * (33 // window_tokens) + [33 % window_tokens] * (
        33 % window_tokens > 0
    )
    assert torch.equal(torch.cat(parts), whole)


def test_training_windows_are_told():
    told = []
    learning_rates(small_model(), section(num_windows=500), TRAIN, progress=told.append)
    assert told == [12] * 5 + [1]  # 61 tokens on 3 lanes: 20, 20 and 21
    told.clear()
    learning_rates(small_model(), section(), TRAIN, progress=told.append)
    assert told == [12] * 5


def test_it_learns_what_comes_again():
    model, tokens = small_model(), Ids(list(range(2, 12)) * 20)
    plain = score(partial(plain_nats, model), tokens)
    nats_N = dynamic(model, tokens, section(lr=0.1, decay=0.0))
    assert float(nats_N[-10:].mean()) < plain.nats_per_token - 1


def test_a_cache_reads_what_it_gives():
    """Both together: the cache's formula over the nats and vectors of dynamic evaluation."""
    model, tokens, options = small_model(), small_ids(33), section()
    rates = learning_rates(model, options, TRAIN)
    reads = list(read_dynamic(model, options, rates, tokens))
    cache = NeuralCacheConfig(size=6, weight=0.3, sharpness=2.0)
    both = torch.cat(list(cached_nats(partial(read_dynamic, model, options, rates), cache, tokens)))
    torch.testing.assert_close(both, torch.cat(list(cached_nats(lambda _: iter(reads), cache, tokens))))
    assert not torch.isclose(both, torch.cat([each.nats_N for each in reads])).all()


def test_its_protocol():
    options = section(lr=5e-5, decay=0.002, epsilon=2e-5, segment=5, num_lanes=100, num_windows=1000)
    assert dynamic_protocol(options) == (
        "dynamic evaluation in segments of 5, lr 5e-05, decay 0.002, epsilon 2e-05, gradients over 1000 windows of 100"
        " lanes at most"
    )
