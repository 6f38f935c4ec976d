"""A model that is regularized as AWD-LSTM is equals the formula, written out here gate by gate in float64.

Its masks are worked out by hand from the keys.

Shape suffixes: T time, L lanes, N tokens that are targets, E embedding, H hidden, V vocabulary.
"""

import numpy as np
import pytest
import torch
from support.masks import lane_masks_by_hand, mask_by_hand, word_mask_by_hand
from support.sections import model_section
from torch.nn import functional as F

from pipeline.model.dropout import lane_keys
from pipeline.model.language_model import LanguageModel

V, E, H, LAST, LANES, STEPS = 19, 4, 7, 4, 3, 5
AWD = {
    "embedding_size": E,
    "hidden_size": H,
    "num_layers": 3,
    "last_size": LAST,
    "weight_dropout": 0.5,
    "dropout": 0.1,
    "tied": True,
    "cutoffs": (),
    "div_value": 1.0,
    "locked": True,
    "input_dropout": 0.65,
    "layer_dropout": 0.2,
    "output_dropout": 0.4,
    "embedding_dropout": 0.3,
    "activation": 2.0,
    "temporal": 1.5,
}
SHORT = [None, [True, False, True]]


def model_of(**changes):
    model = LanguageModel(model_section(**(AWD | changes)), vocab_size=V)
    model.draw_weights(seed=1, init_scale=0.7)
    return model.double()


def keys_of(model, *, step=2, lanes=range(LANES)):
    sites = {"num_sites": model.num_sites, "num_shared_sites": model.num_shared_sites}
    return torch.from_numpy(lane_keys(seed=5, step=step, lanes=lanes, **sites))


def drawn_state(model, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    zero = model.recurrence.zero_state(LANES)
    return tuple(torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in zero)


def window_of(num_steps=STEPS):
    words = np.random.default_rng(0).integers(0, V, (2, num_steps, LANES))
    return torch.from_numpy(words[0]), torch.from_numpy(words[1])


def there(num_steps, short):
    """Which tokens are targets, bool [time, lanes]."""
    there_TL = torch.ones(num_steps, LANES, dtype=torch.bool)
    if short is not None:
        there_TL[-1] = ~torch.tensor(short)
    return there_TL


def rows_of(there_TL, short):
    return None if short is None else there_TL.flatten().nonzero()[:, 0]


def unsigned(key):
    return int(key) & 0xFFFFFFFF


def layer_by_hand(input_TLE, h_LH, c_LH, layer, *, mask_GH, there_TL):
    """An LSTM layer, time step by time step; a lane that lacks a step keeps its state."""
    hidden = []
    recurrent_GH = layer.weight_hh_l0 * mask_GH
    for input_LE, there_L in zip(input_TLE, there_TL, strict=True):
        gates = F.linear(input_LE, layer.weight_ih_l0, layer.bias_ih_l0) + F.linear(
            h_LH, recurrent_GH, layer.bias_hh_l0
        )
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c_LH + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        hidden.append(h)
        h_LH, c_LH = (torch.where(there_L[:, None], new, old) for new, old in ((h, h_LH), (c, c_LH)))
    return torch.stack(hidden), h_LH, c_LH


def by_hand(model, state, keys_SL, there_TL, *, locked=True):
    """(nats of the targets, sum over them of what is added, state) of Merity et al. 2018."""
    inputs_TL, targets_TL = window_of(len(there_TL))
    lane_rows, word_row, weight_rows = keys_SL[:4], keys_SL[4], keys_SL[5:8]
    word_mask_V = word_mask_by_hand(unsigned(word_row[0]), V, p=0.3)
    hidden_TLH = (model.embedding_VE * word_mask_V[:, None])[inputs_TL]
    h = [*state[0], state[2][0]]
    c = [*state[1], state[3][0]]
    for k, layer in enumerate(model.recurrence.layers):
        p = 0.2 if k else 0.65
        masks = lane_masks_by_hand(lane_rows[k], len(there_TL), hidden_TLH.shape[2], p=p, locked=locked)
        mask_GH = mask_by_hand(unsigned(weight_rows[k][0]), *layer.weight_hh_l0.shape, p=0.5)
        hidden_TLH, h[k], c[k] = layer_by_hand(
            hidden_TLH * masks, h[k], c[k], layer, mask_GH=mask_GH, there_TL=there_TL
        )
    dropped_TLH = hidden_TLH * lane_masks_by_hand(lane_rows[3], len(there_TL), LAST, p=0.4, locked=locked)
    logits_NV = F.linear(dropped_TLH[there_TL], model.embedding_VE, model.softmax.head_bias)
    nats_N = F.cross_entropy(logits_NV, targets_TL[there_TL], reduction="none")
    pairs_TL = there_TL[1:] & there_TL[:-1]
    changes = (hidden_TLH[1:] - hidden_TLH[:-1])[pairs_TL]
    penalty = 2.0 * dropped_TLH[there_TL].square().mean() + 1.5 * (changes.square().mean() if len(changes) else 0.0)
    return nats_N, penalty, (torch.stack(h[:2]), torch.stack(c[:2]), h[2][None], c[2][None])


def step_of(model, state, keys_SL, there_TL, short, *, num_targets=None, num_pairs=None):
    """What the model itself makes of it."""
    inputs_TL, targets_TL = window_of(len(there_TL))
    rows_N = rows_of(there_TL, short)
    hidden_TLH, penalty, after = model.hidden_and_penalty(
        inputs_TL,
        state,
        keys_SL=keys_SL,
        num_targets=int(there_TL.sum()) if num_targets is None else num_targets,
        num_pairs=int((there_TL[1:] & there_TL[:-1]).sum()) if num_pairs is None else num_pairs,
        short_L=None if short is None else torch.tensor(short),
        rows_N=rows_N,
    )
    targets = model.softmax.prepare_targets(targets_TL[there_TL].numpy())
    return model.nats(hidden_TLH, targets, rows_N=rows_N), penalty, after


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.numel()}


@pytest.mark.parametrize("short", SHORT)
@pytest.mark.parametrize("num_steps", [1, 2, STEPS])
@pytest.mark.parametrize("locked", [True, False])
def test_a_step_is_the_formulas(short, num_steps, locked):
    """Nats, what is added to them, the state, and the gradient of every parameter."""
    model = model_of(locked=locked)
    state, keys_SL, there_TL = drawn_state(model), keys_of(model), there(num_steps, short)
    assert keys_SL.shape == (4 + 4, LANES)
    nats_N, penalty, after = step_of(model, state, keys_SL, there_TL, short)
    expected_N, mean, expected = by_hand(model, state, keys_SL, there_TL, locked=locked)
    num_targets = int(there_TL.sum())
    torch.testing.assert_close(nats_N, expected_N)
    torch.testing.assert_close(penalty / num_targets, mean)  # as training divides it
    torch.testing.assert_close(after, expected)
    found = gradients(model, (nats_N.sum() + penalty) / num_targets)
    wanted = gradients(model, expected_N.mean() + mean)
    torch.testing.assert_close(found, wanted)
    assert all(gradient.any() or num_steps == 1 for gradient in found.values())


@pytest.mark.parametrize("short", SHORT)
def test_lanes_dealt_to_ranks_give_the_step_of_all(short):
    model = model_of()
    state, there_TL = drawn_state(model), there(STEPS, short)
    whole_N, whole, whole_after = step_of(model, state, keys_of(model), there_TL, short)
    whole_TL = torch.full(there_TL.shape, torch.nan, dtype=torch.float64)
    whole_TL[there_TL] = whole_N
    counts = {"num_targets": int(there_TL.sum()), "num_pairs": int((there_TL[1:] & there_TL[:-1]).sum())}
    inputs_TL, targets_TL = window_of()
    parts = []
    for lanes in ([0], [1, 2]):
        some_TL = there_TL[:, lanes]
        rows_N = rows_of(some_TL, short)
        hidden_TLH, penalty, after = model.hidden_and_penalty(
            inputs_TL[:, lanes],
            tuple(each[:, lanes] for each in state),
            keys_SL=keys_of(model, lanes=lanes),
            short_L=None if short is None else torch.tensor(short)[lanes],
            rows_N=rows_N,
            **counts,
        )
        targets = model.softmax.prepare_targets(targets_TL[:, lanes][some_TL].numpy())
        nats_N = model.nats(hidden_TLH, targets, rows_N=rows_N)
        torch.testing.assert_close(nats_N, whole_TL[:, lanes][some_TL])
        torch.testing.assert_close(after, tuple(each[:, lanes] for each in whole_after))
        parts.append(penalty)
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_without_keys_the_model_is_the_plain_one_and_remembers_nothing():
    model, plain = model_of(), model_of(weight_dropout=0.0, embedding_dropout=0.0, activation=0.0, temporal=0.0)
    state = drawn_state(model)
    there_TL = there(STEPS, None)
    for _ in range(2):
        nats_N, _, after = step_of(model, state, None, there_TL, None)
        expected_N, penalty, expected = step_of(plain, state, None, there_TL, None)
        assert penalty is None
        assert torch.equal(nats_N, expected_N)
        assert all(torch.equal(one, other) for one, other in zip(after, expected, strict=True))
        step_of(model, state, keys_of(model), there_TL, None)  # leaves nothing behind


def test_the_weights_have_their_names_after_a_step_too():
    model = model_of()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    step_of(model, drawn_state(model), keys_of(model), there(STEPS, None), None)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert [*model.state_dict()][:5] == [
        "embedding_VE",
        "recurrence.layers.0.weight_ih_l0",
        "recurrence.layers.0.weight_hh_l0",
        "recurrence.layers.0.bias_ih_l0",
        "recurrence.layers.0.bias_hh_l0",
    ]


@pytest.mark.parametrize(("site", "changes"), [(0, "input_dropout"), (1, "layer_dropout"), (3, "output_dropout")])
def test_a_rate_that_is_not_given_is_that_of_all(site, changes):
    """Each of the three alone, at the model's own rate."""
    alone = {"input_dropout": 0.0, "layer_dropout": 0.0, "output_dropout": 0.0}
    other = alone | {changes: None}
    given = alone | {changes: 0.4}
    state, there_TL = drawn_state(model_of()), there(STEPS, None)
    found = []
    for rates in (other, given, alone):
        model = model_of(dropout=0.4, **rates)
        found.append(step_of(model, state, keys_of(model), there_TL, None)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    model = model_of(dropout=0.4, **given)
    others = keys_of(model).clone()
    others[site] += 1
    assert not torch.allclose(step_of(model, state, others, there_TL, None)[0], found[1])


@pytest.mark.parametrize(("weight", "expected"), [({"activation": 0.0}, 1.5), ({"temporal": 0.0}, 2.0)])
def test_each_penalty_stands_alone(weight, expected):
    model, both = model_of(**weight), model_of()
    state, keys_SL, there_TL = drawn_state(model), keys_of(model), there(STEPS, None)
    alone = step_of(model, state, keys_SL, there_TL, None)[1]
    rest = step_of(
        model_of(**{key: 0.0 for key in ("activation", "temporal") if key not in weight}),
        state,
        keys_SL,
        there_TL,
        None,
    )[1]
    assert 0 < alone < step_of(both, state, keys_SL, there_TL, None)[1]
    torch.testing.assert_close(alone + rest, step_of(both, state, keys_SL, there_TL, None)[1])
    halved = {key: value / 2 for key, value in (("activation", 2.0), ("temporal", 1.5)) if value == expected}
    torch.testing.assert_close(step_of(model_of(**weight, **halved), state, keys_SL, there_TL, None)[1], alone / 2)


def test_a_global_batch_without_pairs_has_no_temporal_penalty():
    model = model_of(activation=0.0)
    state, keys_SL = drawn_state(model), keys_of(model)
    assert step_of(model, state, keys_SL, there(1, None), None)[1] is None


def test_under_bf16_a_penalty_is_summed_in_float32():
    model = model_of().float()
    state = tuple(each.float() for each in drawn_state(model))
    keys_SL, there_TL = keys_of(model), there(STEPS, None)
    expected = step_of(model, state, keys_SL, there_TL, None)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats_N, penalty, _ = step_of(model, state, keys_SL, there_TL, None)
    assert (nats_N.dtype, penalty.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(penalty, expected, rtol=0.03, atol=0.0)
    gradients(model, nats_N.sum() + penalty)


def test_the_recurrence_is_drawn_at_a_scale_of_its_own():
    model, plain = model_of(), model_of()
    model.draw_weights(seed=1, init_scale=0.1, recurrence_init_scale=0.02)
    plain.draw_weights(seed=1, init_scale=0.1)
    for (name, found), drawn in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, drawn * (0.2 if name.startswith("recurrence.") else 1.0))
