"""What every row of the tables keeps: a new one is tested here without a line more, with the values of its kind."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.tables import toys_added

from pipeline.config import KINDS, Config, FullInputConfig, load
from pipeline.model.dropout import lane_keys
from pipeline.model.language_model import LanguageModel, num_words
from pipeline.model.tables import INPUT_LAYERS, OUTPUT_LAYERS, RECURRENCES
from pipeline.training.parts import fitted_model

LANES, INPUT = 4, 5
HIDDEN, VOCAB = 6, 10_050  # more words than the default cutoffs
TOYS = {"model.recurrence": ("decay", "trio"), "model.softmax": ("grouped",), "model.input": ()}


def kinds_of(place):
    return [*KINDS[place], *TOYS[place]]


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    with toys_added():
        yield


@torch.no_grad()
def drawn(module, *, scale=0.5):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.copy_(torch.empty(parameter.shape).uniform_(-scale, scale, generator=generator))
    return module


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_every_kind_has_its_class():
    assert {*KINDS["model.recurrence"].values()} == {*RECURRENCES}
    assert {*KINDS["model.softmax"].values()} == {*OUTPUT_LAYERS}
    assert {*KINDS["model.input"].values()} == {FullInputConfig, *INPUT_LAYERS}


# --- input layers


@pytest.fixture(params=kinds_of("model.input"))
def model(request):
    sizes = ["model.embedding_size=7", "model.recurrence.hidden_size=3", "model.recurrence.num_layers=1"]
    section = fitted_model(load(Config, [f"model.input.kind={request.param}", *sizes]).model, vocab_size=VOCAB)
    assert section.input.kind == request.param
    return drawn(LanguageModel(section, vocab_size=VOCAB))


def test_a_words_vector_depends_on_the_word_alone(model):
    words_TL = torch.from_numpy(targets_of(12)).view(4, 3)
    found_TLE = model.embed(words_TL)
    assert (found_TLE.shape, found_TLE.dtype) == ((4, 3, 7), torch.float64)
    for word, vector_E in zip(words_TL.flatten(), found_TLE.flatten(0, 1), strict=True):
        assert_close(model.embed(word.view(1, 1))[0, 0], vector_E)
    assert len({tuple(each.tolist()) for each in found_TLE.flatten(0, 1)}) == 12


def test_the_words_are_counted_by_the_weights(model):
    assert num_words(model.state_dict()) == num_words(dict(model.named_parameters())) == VOCAB
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("words", [[0, 0], [VOCAB - 1]])
def test_every_parameter_of_an_input_layer_has_a_gradient_whatever_the_words(model, words):
    model.embed(torch.tensor(words)[:, None]).sum().backward()
    upper = {id(each) for part in (model.recurrence, model.softmax) for each in part.parameters()}
    below = [each for each in model.parameters() if id(each) not in upper]
    assert below
    assert all(each.grad is not None for each in below)


# --- recurrences


@pytest.fixture(params=kinds_of("model.recurrence"))
def recurrence(request):
    section = load(Config, [f"model.recurrence.kind={request.param}"]).model.recurrence
    made = drawn(RECURRENCES[type(section)](section, input_size=INPUT, dropout=0.4))
    assert made.output_size == section.output_size
    return made


def input_of(num_steps):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_steps, LANES, INPUT, generator=generator, dtype=torch.float64)


def keys_of(recurrence):
    sites = {"num_sites": recurrence.num_sites, "num_shared_sites": recurrence.num_shared_sites}
    return torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), **sites))


def state_of(recurrence):
    """That after a few words."""
    _, state = recurrence(input_of(3) - 1, recurrence.zero_state(LANES), keys_SL=None)
    return tuple(each.detach() for each in state)


def lanes_of(state, lanes):
    return tuple(each[:, lanes] for each in state)


def test_the_state_is_named_and_lanes_are_its_dimension_1(recurrence):
    zero = recurrence.zero_state(LANES)
    assert len({*recurrence.state_names}) == len(recurrence.state_names) == len(zero) > 0
    assert {each.shape[1] for each in zero} == {LANES}
    assert not any(each.any() or each.requires_grad for each in zero)
    hidden_TLH, state = recurrence(input_of(3), zero, keys_SL=None)
    assert hidden_TLH.shape == (3, LANES, recurrence.output_size)
    assert [(each.shape, each.dtype) for each in state] == [(each.shape, each.dtype) for each in zero]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("short", [None, [True, False, True, False]])
def test_lanes_do_not_touch_each_other(recurrence, dropped, short):
    keys_SL = keys_of(recurrence) if dropped else None
    short_L = None if short is None else torch.tensor(short)
    state, some = state_of(recurrence), [3, 0]
    whole_TLH, whole = recurrence(input_of(4), state, keys_SL=keys_SL, short_L=short_L)
    some_TLH, after = recurrence(
        input_of(4)[:, some],
        lanes_of(state, some),
        keys_SL=None if keys_SL is None else keys_SL[:, some],
        short_L=None if short_L is None else short_L[some],
    )
    there = 4 if short is None else 3
    assert_close(some_TLH[:there], whole_TLH[:there, some])
    assert_close(after, lanes_of(whole, some))


def test_windows_chained_equal_one_long_window(recurrence):
    expected_TLH, expected = recurrence(input_of(9), recurrence.zero_state(LANES), keys_SL=None)
    state, found = recurrence.zero_state(LANES), []
    for part in input_of(9).split([4, 1, 3, 1]):
        hidden_TLH, state = recurrence(part, state, keys_SL=None)
        found.append(hidden_TLH)
    assert_close(torch.cat(found), expected_TLH)
    assert_close(state, expected)
    elsewhere_TLH, _ = recurrence(input_of(9), state, keys_SL=None)
    assert not torch.allclose(elsewhere_TLH, expected_TLH)  # the state has a part in it


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_short_lane_ends_a_step_earlier(recurrence, num_steps):
    state = state_of(recurrence)
    _, after = recurrence(input_of(num_steps), state, keys_SL=None, short_L=torch.tensor([True, False, True, False]))
    _, whole = recurrence(input_of(num_steps), state, keys_SL=None)
    earlier = recurrence(input_of(num_steps)[:-1], state, keys_SL=None)[1] if num_steps > 1 else state
    assert_close(lanes_of(after, [0, 2]), lanes_of(earlier, [0, 2]))
    assert_close(lanes_of(after, [1, 3]), lanes_of(whole, [1, 3]))


def test_dropout_is_drawn_from_the_keys_alone(recurrence):
    dry_TLH, _ = recurrence.train()(input_of(4), state_of(recurrence), keys_SL=None)
    assert torch.equal(recurrence.eval()(input_of(4), state_of(recurrence), keys_SL=None)[0], dry_TLH)
    found = [recurrence(input_of(4), state_of(recurrence), keys_SL=keys_of(recurrence))[0] for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(found[0], dry_TLH) == (recurrence.num_sites == 0)


def test_every_parameter_of_a_recurrence_has_a_gradient(recurrence):
    hidden_TLH, _ = recurrence(input_of(3), recurrence.zero_state(LANES), keys_SL=None)
    hidden_TLH.sum().backward()
    assert all(parameter.grad is not None for parameter in recurrence.parameters())


# --- output layers


@pytest.fixture(params=kinds_of("model.softmax"))
def layer(request):
    model = fitted_model(load(Config, [f"model.softmax.kind={request.param}"]).model, vocab_size=VOCAB)
    assert model.softmax.kind == request.param
    make = OUTPUT_LAYERS[type(model.softmax)]
    return drawn(make(model.softmax, hidden_size=HIDDEN, vocab_size=VOCAB, embedding_VH=None), scale=1.0)


def hidden_of(num_tokens):
    return torch.randn(num_tokens, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def targets_of(num_tokens):
    """From every part of the vocabulary, its ends included."""
    return np.linspace(0, VOCAB - 1, num_tokens).astype(np.int64)


def test_probabilities_sum_to_one(layer):
    found_NV = layer.log_probabilities(hidden_of(5))
    assert found_NV.shape == (5, VOCAB)
    assert_close(found_NV.exp().sum(1), torch.ones(5, dtype=torch.float64))
    assert found_NV.std() > 0.1


def test_nats_are_negative_log_probabilities(layer):
    targets_N = targets_of(40)
    targets = layer.prepare_targets(targets_N)
    assert {each.device.type for each in targets} == {"cpu"}
    nats_N = layer.nats(hidden_of(40), targets)
    assert_close(nats_N, -layer.log_probabilities(hidden_of(40))[range(40), targets_N])


@pytest.mark.parametrize("num_tokens", [0, 1, 40])
def test_each_target_is_told_of_in_one_cluster(layer, num_tokens):
    targets = layer.prepare_targets(targets_of(num_tokens))
    nats_N = layer.nats(hidden_of(num_tokens), targets).detach()
    nats_C, num_targets = layer.cluster_sums(nats_N, targets)
    assert nats_C.shape == (len(layer.clusters),) == (len(num_targets),)
    assert sum(num_targets) == num_tokens
    assert_close(nats_C.sum(), nats_N.sum())


@pytest.mark.parametrize("targets", [[], [0, 0], [VOCAB - 1]])
def test_what_is_drawn_stands_behind_the_targets_and_moves_every_parameter_too(layer, targets):
    """Its words depend on no rank's targets; a kind whose loss is exact draws nothing."""
    targets_N = np.array(targets, dtype=np.int64)
    sample = layer.sampler(counts=lambda: np.arange(VOCAB, 0, -1), seed=3)
    drawn_now = sample(5, targets_N)
    assert layer.loss_is_exact == (drawn_now == ())
    assert {each.device.type for each in drawn_now} <= {"cpu"}
    assert all(torch.equal(*each) for each in zip(drawn_now[:1], sample(5, targets_of(9))[:1], strict=True))
    nats_N = layer.nats(hidden_of(len(targets)), (*layer.prepare_targets(targets_N), *drawn_now))
    assert nats_N.shape == (len(targets),)
    assert nats_N.isfinite().all()
    nats_N.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("targets", [[], [0, 0], [VOCAB - 1]])
def test_every_parameter_of_an_output_layer_has_a_gradient_whatever_the_targets(layer, targets):
    targets_N = np.array(targets, dtype=np.int64)
    layer.nats(hidden_of(len(targets)), layer.prepare_targets(targets_N)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_of_bf16_logits_the_nats_are_float32(layer):
    layer, targets_N = layer.float(), targets_of(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats_N = layer.nats(hidden_of(40).float(), layer.prepare_targets(targets_N))
        found_NV = layer.log_probabilities(hidden_of(40).float())
    assert (nats_N.dtype, found_NV.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found_NV.exp().sum(1), torch.ones(40), rtol=1e-4, atol=1e-4)
