"""The language model: weights drawn alike, parts put together in order, parameters counted."""

import numpy as np
import pytest
import torch
from support.sections import model_section

from pipeline.model.adaptive_softmax import split_targets
from pipeline.model.dropout import lane_dropout, lane_keys
from pipeline.model.language_model import LanguageModel


def model_of(*, seed=0, init_scale=0.5, vocab_size=23, **changes):
    sizes = {
        "embedding_size": 6,
        "hidden_size": 6,
        "num_layers": 2,
        "projection_size": None,
        "dropout": 0.3,
        "tied": False,
        "cutoffs": (5, 11),
        "div_value": 2.0,
    }
    model = LanguageModel(model_section(**(sizes | changes)), vocab_size=vocab_size)
    model.draw_weights(seed=seed, init_scale=init_scale)
    return model


def window_of(num_steps=4, num_lanes=3, vocab_size=23):
    words = np.random.default_rng(0).integers(0, vocab_size, (2, num_steps, num_lanes))
    return torch.from_numpy(words[0]), words[1].reshape(-1)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# --- weights


@pytest.mark.parametrize("init_scale", [0.05, 0.5])
def test_weights_are_uniform_within_the_scale(init_scale):
    model = model_of(init_scale=init_scale, vocab_size=400, embedding_size=50)
    for parameter in model.parameters():
        assert parameter.abs().max() <= init_scale
    weights = model.embedding_VE.detach().double()
    assert weights.abs().max() > 0.999 * init_scale
    assert abs(weights.mean()) < 5 * init_scale / (3 * weights.numel()) ** 0.5
    assert abs(weights.var() / (init_scale**2 / 3) - 1) < 0.05


def test_the_same_seed_draws_the_same_weights_and_another_others():
    one, same, other = model_of(seed=3), model_of(seed=3), model_of(seed=4)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_every_parameter_is_drawn_and_they_are_drawn_one_after_the_other():
    model = model_of(seed=5, init_scale=0.25)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        assert torch.equal(parameter, torch.empty(parameter.shape).uniform_(-0.25, 0.25, generator=generator))


def test_drawing_leaves_the_global_generator_alone_and_the_gradients_on():
    model = model_of()
    before = torch.get_rng_state()
    model.draw_weights(seed=9, init_scale=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# --- the parts put together


@pytest.mark.parametrize("short", [None, [True, False, True]])
def test_nats_are_those_of_embedding_recurrence_and_softmax_in_turn(short):
    model = model_of()
    inputs_TL, targets_N = window_of()
    short_L = None if short is None else torch.tensor(short)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=0, lanes=range(3), num_sites=model.num_sites))
    split = split_targets(targets_N, cutoffs=(5, 11))
    zero = model.recurrence.zero_state(3)
    nats_N, state = model(inputs_TL, zero, split, keys_SL=keys_SL, short_L=short_L)
    input_TLE = model.embedding_VE[inputs_TL]
    hidden_TLH, expected = model.recurrence(input_TLE, zero, keys_SL=keys_SL[:2], short_L=short_L)
    hidden_TLH = lane_dropout(hidden_TLH, keys_SL[2], p=0.3)
    torch.testing.assert_close(nats_N, model.softmax.nats(hidden_TLH.flatten(0, 1), split))
    torch.testing.assert_close(state, expected)
    assert state[0].requires_grad  # whoever carries it cuts it off
    assert (model.num_sites, model.vocab_size) == (3, 23)


def test_without_keys_nothing_is_dropped():
    model = model_of(dropout=0.9)
    inputs_TL, targets_N = window_of()
    split = split_targets(targets_N, cutoffs=(5, 11))
    zero = model.recurrence.zero_state(3)
    nats_N, _ = model.train()(inputs_TL, zero, split)
    dry = model_of(dropout=0.0)
    assert torch.equal(nats_N, dry(inputs_TL, zero, split)[0])


def test_rows_choose_the_targets():
    model = model_of()
    inputs_TL, targets_N = window_of()
    zero = model.recurrence.zero_state(3)
    rows_N = torch.tensor([0, 1, 2, 4, 7, 10])
    whole_N, _ = model(inputs_TL, zero, split_targets(targets_N, cutoffs=(5, 11)))
    some_N, _ = model(inputs_TL, zero, split_targets(targets_N[rows_N.numpy()], cutoffs=(5, 11)), rows_N=rows_N)
    torch.testing.assert_close(some_N, whole_N[rows_N])


@pytest.mark.parametrize(("dropout", "short"), [(0.0, None), (0.4, [True, True, False])])
def test_lanes_dealt_to_ranks_give_the_nats_of_all(dropout, short):
    model = model_of(dropout=dropout).double()
    inputs_TL, targets_N = window_of()
    targets_TL = targets_N.reshape(4, 3)
    short_L = None if short is None else torch.tensor(short)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=7, lanes=range(3), num_sites=3))
    whole_N, _ = model(
        inputs_TL,
        model.recurrence.zero_state(3),
        split_targets(targets_N, cutoffs=(5, 11)),
        keys_SL=keys_SL,
        short_L=short_L,
    )
    for lane in range(3):
        own_T, _ = model(
            inputs_TL[:, lane, None],
            model.recurrence.zero_state(1),
            split_targets(targets_TL[:, lane], cutoffs=(5, 11)),
            keys_SL=torch.from_numpy(lane_keys(seed=1, step=7, lanes=[lane], num_sites=3)),
            short_L=None if short_L is None else short_L[lane, None],
        )
        torch.testing.assert_close(own_T, whole_N.reshape(4, 3)[:, lane])


# --- tied weights


@pytest.mark.parametrize("cutoffs", [(), (5, 11)])
def test_tied_softmax_reads_the_embedding(cutoffs):
    model = model_of(tied=True, div_value=1.0, cutoffs=cutoffs)
    assert model.softmax.embedding_VH is model.embedding_VE
    assert len(list(model.parameters())) == len({id(each) for each in model.parameters()})
    inputs_TL, targets_N = window_of()
    nats_N, _ = model(inputs_TL, model.recurrence.zero_state(3), split_targets(targets_N, cutoffs=cutoffs))
    nats_N.sum().backward()
    untied = model_of(tied=False, div_value=1.0, cutoffs=cutoffs)
    unread = sorted(set(range(23)) - set(inputs_TL.flatten().tolist()) - set(range(cutoffs[0] if cutoffs else 23)))
    hit = [word for word in unread if word in targets_N]  # moved by the softmax alone
    assert (model.embedding_VE.grad[hit] != 0).any(dim=1).all()
    assert untied.softmax.embedding_VH is None


def test_tied_with_a_projection():
    model = model_of(tied=True, div_value=1.0, embedding_size=4, projection_size=4).double()
    inputs_TL, targets_N = window_of()
    nats_N, _ = model(inputs_TL, model.recurrence.zero_state(3), split_targets(targets_N, cutoffs=(5, 11)))
    assert nats_N.shape == (12,)


# --- how many parameters


def lstm_count(input_size, hidden_size, projection_size):
    """Four gates of an input, a recurrent matrix and two biases; and the projection."""
    output_size = projection_size or hidden_size
    gates = 4 * hidden_size * (input_size + output_size + 2)
    return gates + (hidden_size * projection_size if projection_size else 0)


def test_parameters_of_a_full_softmax():
    V, E, H = 23, 5, 6
    model = model_of(cutoffs=(), div_value=1.0, embedding_size=E, hidden_size=H)
    assert count(model) == V * E + lstm_count(E, H, None) + lstm_count(H, H, None) + V * H + V


def test_parameters_of_an_adaptive_softmax_with_a_projected_lstm():
    E, H, P = 5, 9, 8
    model = model_of(embedding_size=E, hidden_size=H, projection_size=P, num_layers=3)
    embedding = 23 * E
    lstm = lstm_count(E, H, P) + 2 * lstm_count(P, H, P)
    head = (5 + 2) * P + (5 + 2)
    tails = 6 * 4 + 4 * P + 6 + 12 * 2 + 2 * P + 12  # 6 words 4 wide, 12 words 2 wide
    assert count(model) == embedding + lstm + head + tails


def test_parameters_of_a_tied_adaptive_softmax():
    V, E = 23, 6
    model = model_of(tied=True, div_value=1.0)
    assert count(model) == V * E + 2 * lstm_count(E, 6, None) + 2 * E + V + 2


def test_zarembas_medium_model_has_the_parameters_of_the_paper():
    """Two layers of 650 over 10,000 words."""
    with torch.device("meta"):
        sizes = {"embedding_size": 650, "hidden_size": 650, "dropout": 0.5, "cutoffs": (), "div_value": 1.0}
        model = LanguageModel(model_section(tied=False, **sizes), vocab_size=10_000)
    assert count(model) == 10_000 * 650 + 2 * 4 * 650 * (650 + 650 + 2) + 10_000 * 651


def test_names_of_the_parameters_are_those_of_a_checkpoint():
    assert list(model_of(num_layers=1, cutoffs=(5,)).state_dict()) == [
        "embedding_VE",
        "recurrence.layers.0.weight_ih_l0",
        "recurrence.layers.0.weight_hh_l0",
        "recurrence.layers.0.bias_ih_l0",
        "recurrence.layers.0.bias_hh_l0",
        "softmax.head_weight",
        "softmax.head_bias",
        "softmax.tail_projections.0",
        "softmax.tail_weights.0",
        "softmax.tail_biases.0",
    ]
