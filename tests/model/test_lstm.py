"""The stacked LSTM equals torch's, carries its state, and stops a short lane where it ends."""

import copy

import pytest
import torch
from support.sections import lstm_section
from torch import nn

from pipeline.model import recurrence
from pipeline.model.dropout import lane_dropout, lane_keys, weight_dropout
from pipeline.model.lstm import StackedLSTM
from pipeline.model.recurrence import LayerDropout

INPUT, HIDDEN, LANES = 5, 7, 4
PROJECTIONS = [None, 3]


def stacked_of(*, num_layers=3, projection_size=None, last_size=None, weight_dropout=0.0, dropout=0.0, seed=0):
    section = lstm_section(
        hidden_size=HIDDEN,
        num_layers=num_layers,
        projection_size=projection_size,
        last_size=last_size,
        weight_dropout=weight_dropout,
    )
    lstm = StackedLSTM(section, input_size=INPUT, dropout=dropout).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return lstm


def input_of(num_steps, *, seed=1, num_lanes=LANES):
    return torch.randn(num_steps, num_lanes, INPUT, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_state(lstm, *, seed=2, num_lanes=LANES):
    generator = torch.Generator().manual_seed(seed)
    zero = lstm.zero_state(num_lanes)
    return tuple(torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in zero)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("projection_size", PROJECTIONS)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_equals_torchs_own_with_several_layers(num_layers, projection_size):
    lstm = stacked_of(num_layers=num_layers, projection_size=projection_size)
    theirs = nn.LSTM(INPUT, HIDDEN, num_layers=num_layers, proj_size=projection_size or 0, dtype=torch.float64)
    weights = {
        f"{name.removesuffix('_l0')}_l{k}": weight
        for k, layer in enumerate(lstm.layers)
        for name, weight in layer.state_dict().items()
    }
    theirs.load_state_dict(weights)
    input_TLE, state = input_of(6), drawn_state(lstm)
    hidden_TLP, after = lstm(input_TLE, state, keys_SL=None)
    expected_TLP, (hidden_KLP, cell_KLH) = theirs(input_TLE, state)
    assert_close(hidden_TLP, expected_TLP)
    assert_close(after, (hidden_KLP, cell_KLH))


@pytest.mark.parametrize("projection_size", PROJECTIONS)
def test_windows_chained_equal_one_long_window(projection_size):
    lstm = stacked_of(projection_size=projection_size)
    input_TLE = input_of(9)
    expected_TLP, expected = lstm(input_TLE, lstm.zero_state(LANES), keys_SL=None)
    state, found = lstm.zero_state(LANES), []
    for part in input_TLE.split([4, 1, 3, 1]):
        hidden_TLP, state = lstm(part, state, keys_SL=None)
        found.append(hidden_TLP)
    assert_close(torch.cat(found), expected_TLP)
    assert_close(state, expected)


@pytest.mark.parametrize("projection_size", PROJECTIONS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("short", [[True, False, True, False], [False] * LANES, [True] * LANES])
def test_a_short_lane_ends_as_it_would_alone(num_steps, short, projection_size):
    lstm = stacked_of(projection_size=projection_size)
    input_TLE, state = input_of(num_steps), drawn_state(lstm)
    hidden_TLP, after = lstm(input_TLE, state, keys_SL=None, short_L=torch.tensor(short))
    assert hidden_TLP.shape == (num_steps, LANES, lstm.output_size)
    for lane, is_short in enumerate(short):
        own = tuple(each[:, lane : lane + 1] for each in state)
        length = num_steps - is_short
        if length:
            alone_TLP, own = lstm(input_TLE[:length, lane : lane + 1], own, keys_SL=None)
            assert_close(hidden_TLP[:length, lane : lane + 1], alone_TLP)
        assert_close(tuple(each[:, lane : lane + 1] for each in after), own)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_what_stands_in_a_lacking_place_reaches_neither_state_nor_gradient(num_steps):
    lstm = stacked_of()
    short_L = torch.tensor([True, False, False, True])
    input_TLE = input_of(num_steps).requires_grad_()
    _, after = lstm(input_TLE, drawn_state(lstm), keys_SL=None, short_L=short_L)
    sum(each.sum() for each in after).backward()
    assert (input_TLE.grad[-1, short_L] == 0).all()
    assert (input_TLE.grad[-1, ~short_L] != 0).all()


def test_dropout_stands_below_each_layer_with_its_own_row_of_keys():
    lstm = stacked_of(num_layers=3, dropout=0.4)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=4))
    input_TLE, state = input_of(6), drawn_state(lstm)
    found_TLP, after = lstm(input_TLE, state, keys_SL=keys_SL)
    hidden_TLP, hidden, cell = input_TLE, [], []
    for k, layer in enumerate(lstm.layers):
        hidden_TLP = lane_dropout(hidden_TLP, keys_SL[k], p=0.4)
        hidden_TLP, (hidden_1LP, cell_1LH) = layer(hidden_TLP, (state[0][k, None], state[1][k, None]))
        hidden.append(hidden_1LP)
        cell.append(cell_1LH)
    assert_close(found_TLP, hidden_TLP)  # nothing is dropped above the last layer
    assert_close(after, (torch.cat(hidden), torch.cat(cell)))


def test_dropout_acts_where_keys_are_given_and_nowhere_else(monkeypatch):
    sites = []

    def noted(input_TLH, keys_L, *, p, locked):
        sites.append((keys_L.tolist(), p, locked))
        return input_TLH

    monkeypatch.setattr(recurrence, "lane_dropout", noted)
    lstm = stacked_of(num_layers=3, dropout=0.4)
    lstm.train()
    lstm(input_of(2), lstm.zero_state(LANES), keys_SL=None)
    assert sites == []
    lstm.eval()
    lstm(
        input_of(2),
        lstm.zero_state(LANES),
        keys_SL=torch.arange(16, dtype=torch.int32).reshape(4, LANES),
        short_L=torch.tensor([True, False, False, False]),
    )
    assert sites == [([0, 1, 2, 3], 0.4, False), ([4, 5, 6, 7], 0.4, False), ([8, 9, 10, 11], 0.4, False)]


def test_lanes_do_not_touch_each_other():
    lstm = stacked_of(dropout=0.3)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=4))
    input_TLE, state = input_of(5), drawn_state(lstm)
    whole_TLP, whole = lstm(input_TLE, state, keys_SL=keys_SL)
    some = [3, 1]
    some_TLP, after = lstm(input_TLE[:, some], tuple(each[:, some] for each in state), keys_SL=keys_SL[:, some])
    assert_close(some_TLP, whole_TLP[:, some])
    assert_close(after, tuple(each[:, some] for each in whole))


@pytest.mark.parametrize(("projection_size", "width"), [(None, HIDDEN), (3, 3)])
def test_the_zero_state_has_the_parameters_type_and_the_layers_widths(projection_size, width):
    lstm = stacked_of(projection_size=projection_size)
    state = lstm.zero_state(2)
    assert [tuple(each.shape) for each in state] == [(3, 2, width), (3, 2, HIDDEN)]
    assert (lstm.output_size, lstm.num_sites, lstm.state_names) == (width, 3, ("hidden_KLP", "cell_KLH"))
    assert {each.dtype for each in state} == {torch.float64}
    assert not any(each.any() or each.requires_grad for each in state)


# --- a last layer of its own width, and layers that are dropped each in its own way


def test_a_last_layer_of_its_own_width_has_a_state_of_its_own():
    lstm = stacked_of(num_layers=3, last_size=5)
    assert lstm.state_names == ("hidden_KLP", "cell_KLH", "last_hidden_1LP", "last_cell_1LH")
    assert [tuple(each.shape) for each in lstm.zero_state(2)] == [(2, 2, 7), (2, 2, 7), (1, 2, 5), (1, 2, 5)]
    assert (lstm.output_size, lstm.num_sites, lstm.num_shared_sites) == (5, 3, 0)
    assert [(layer.input_size, layer.hidden_size) for layer in lstm.layers] == [(INPUT, 7), (7, 7), (7, 5)]


@pytest.mark.parametrize("short", [None, [True, False, True, False]])
@pytest.mark.parametrize("num_layers", [2, 3])
def test_layers_of_two_widths_are_torchs_one_above_the_other(num_layers, short):
    lstm = stacked_of(num_layers=num_layers, last_size=5)
    input_TLE, state = input_of(6), drawn_state(lstm)
    short_L = None if short is None else torch.tensor(short)
    found_TLP, after = lstm(input_TLE, state, keys_SL=None, short_L=short_L)
    for lane in range(LANES):
        length = 6 - (short is not None and short[lane])
        hidden_TLP, own = input_TLE[:length, lane, None], []
        for k, layer in enumerate(lstm.layers):
            of_layer = state[2:] if k == num_layers - 1 else tuple(each[k, None] for each in state[:2])
            hidden_TLP, ended = layer(hidden_TLP, tuple(each[:, lane, None] for each in of_layer))
            own.append(ended)
        assert_close(found_TLP[:length, lane, None], hidden_TLP)
        joined = tuple(torch.cat(each) for each in zip(*own[:-1], strict=True))
        assert_close(tuple(each[:, lane, None] for each in after), (*joined, *own[-1]))


def test_each_layer_drops_at_its_rate_and_reads_the_last_rows_for_its_weights():
    lstm = stacked_of(num_layers=3, dropout=LayerDropout(input=0.6, between=0.2, locked=True), weight_dropout=0.5)
    assert (lstm.num_sites, lstm.num_shared_sites) == (3, 3)
    drawn = lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=5, num_shared_sites=5)
    keys_SL = torch.from_numpy(drawn)  # two rows of lanes and two of all lanes that are not its own
    input_TLE, state = input_of(6), drawn_state(lstm)
    found_TLP, _ = lstm(input_TLE, state, keys_SL=keys_SL)
    hidden_TLP = input_TLE
    for k, (layer, p) in enumerate(zip(lstm.layers, (0.6, 0.2, 0.2), strict=True)):
        hidden_TLP = lane_dropout(hidden_TLP, keys_SL[k], p=p, locked=True)
        alone = copy.deepcopy(layer)
        with torch.no_grad():
            alone.weight_hh_l0.copy_(weight_dropout(layer.weight_hh_l0, keys_SL[7 + k], p=0.5))
        hidden_TLP, _ = alone(hidden_TLP, (state[0][k, None], state[1][k, None]))
    assert_close(found_TLP, hidden_TLP)


@pytest.mark.parametrize("short", [None, [True, False, True, False]])
@pytest.mark.parametrize("projection_size", PROJECTIONS)
def test_dropped_weights_get_their_gradient_and_no_other(projection_size, short):
    """Both calls of a window whose last step some lanes lack read the same dropped weights."""
    lstm = stacked_of(num_layers=2, projection_size=projection_size, weight_dropout=0.5)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=2, num_shared_sites=2))
    short_L = None if short is None else torch.tensor(short)
    plain = stacked_of(num_layers=2, projection_size=projection_size)
    masks = [
        weight_dropout(torch.ones_like(each.weight_hh_l0), keys, p=0.5)
        for each, keys in zip(lstm.layers, keys_SL[2:], strict=True)
    ]
    with torch.no_grad():
        for layer, mask in zip(plain.layers, masks, strict=True):
            layer.weight_hh_l0.mul_(mask)
    for module, keys in ((lstm, keys_SL), (plain, None)):
        hidden_TLP, after = module(input_of(4), drawn_state(module), keys_SL=keys, short_L=short_L)
        (hidden_TLP[:-1].square().sum() + sum(each.square().sum() for each in after)).backward()
    for (name, found), wanted in zip(lstm.named_parameters(), plain.parameters(), strict=True):
        mask = masks[int(name.split(".")[1])] if "weight_hh" in name else 1.0
        assert_close(found.grad, wanted.grad * mask)
