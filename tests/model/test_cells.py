"""Each cell equals its formula, written out as a loop in float64, from any state and however the text is cut."""

import math

import pytest
import torch
from torch import nn

from pipeline.config import ElmanConfig, GRUConfig, MinLSTMConfig, TransformerConfig, WindowConfig
from pipeline.model import minlstm, transformer
from pipeline.model.dropout import lane_dropout, lane_keys
from pipeline.model.minlstm import SCAN_STEPS, StackedMinLSTM, log_positive, scan
from pipeline.model.one_state import StackedElman, StackedGRU
from pipeline.model.transformer import Norm, Transformer, attention_bias
from pipeline.model.window import FeedForward

INPUT, HIDDEN, LANES = 5, 6, 4


@torch.no_grad()
def drawn(cell, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in cell.double().parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2)
    return cell


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elman_of(num_layers=2):
    section = ElmanConfig(kind="elman", hidden_size=HIDDEN, num_layers=num_layers)
    return drawn(StackedElman(section, input_size=INPUT, dropout=0.0))


def gru_of(num_layers=2):
    section = GRUConfig(kind="gru", hidden_size=HIDDEN, num_layers=num_layers)
    return drawn(StackedGRU(section, input_size=INPUT, dropout=0.0))


def minlstm_of(num_layers=2):
    section = MinLSTMConfig(kind="minlstm", hidden_size=HIDDEN, num_layers=num_layers)
    return drawn(StackedMinLSTM(section, input_size=INPUT, dropout=0.0))


def window_of(context_size=4, *, direct=False, dropout=0.0):
    section = WindowConfig(kind="window", context_size=context_size, hidden_size=HIDDEN, direct=direct)
    return drawn(FeedForward(section, input_size=INPUT, dropout=dropout))


def transformer_of(memory_size=3, *, num_layers=2, dropout=0.0, input_size=INPUT):
    section = TransformerConfig(
        kind="transformer",
        hidden_size=HIDDEN,
        num_layers=num_layers,
        num_heads=2,
        feed_forward_size=7,
        memory_size=memory_size,
    )
    return drawn(Transformer(section, input_size=input_size, dropout=dropout))


def assert_close(found, expected, *, tolerance=1e-12):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def in_pieces(cell, input_TLE, pieces):
    """The text read a piece at a time, from the zero state."""
    state, found = cell.zero_state(input_TLE.shape[1]), []
    for part in input_TLE.split(pieces):
        hidden_TLH, state = cell(part, state, keys_SL=None)
        found.append(hidden_TLH)
    return torch.cat(found), state


# --- stacked layers of one state tensor


def elman_step(layer, x, h):
    return torch.tanh(x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0)


def gru_step(layer, x, h):
    """Torch's GRU, in which the reset gate acts on U h' + b, not on h'."""
    read = (x @ layer.weight_ih_l0.T + layer.bias_ih_l0).chunk(3, dim=-1)
    held = (h @ layer.weight_hh_l0.T + layer.bias_hh_l0).chunk(3, dim=-1)
    reset, update = (torch.sigmoid(read[i] + held[i]) for i in (0, 1))
    return (1 - update) * torch.tanh(read[2] + reset * held[2]) + update * h


def minlstm_step(layer, x, h):
    forget, take, new = (x @ layer.gates.weight.T + layer.gates.bias).chunk(3, dim=-1)
    forget, take = torch.sigmoid(forget), torch.sigmoid(take)
    positive = torch.where(new >= 0, new + 0.5, torch.sigmoid(new))
    return forget / (forget + take) * h + take / (forget + take) * positive


STEPS = {"elman": (elman_of, elman_step), "gru": (gru_of, gru_step), "minlstm": (minlstm_of, minlstm_step)}


def looped(cell, step, input_TLE, hidden_KLH):
    """The cell's layers, a time step at a time."""
    after = []
    for layer, before_LH in zip(cell.layers, hidden_KLH, strict=True):
        found = [before_LH]
        for input_LE in input_TLE:
            found.append(step(layer, input_LE, found[-1]))
        input_TLE = torch.stack(found[1:])
        after.append(found[-1])
    return input_TLE, torch.stack(after)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("from_zero", [True, False])
def test_a_stacked_cell_equals_its_formula_and_so_do_its_gradients(name, num_layers, from_zero):
    make, step = STEPS[name]
    cell = make(num_layers)
    input_TLE = draw(9, LANES, INPUT).requires_grad_()
    hidden_KLH = cell.zero_state(LANES)[0] if from_zero else draw(num_layers, LANES, HIDDEN, seed=2).abs()
    found_TLH, (after_KLH,) = cell(input_TLE, (hidden_KLH,), keys_SL=None)
    expected_TLH, expected_KLH = looped(cell, step, input_TLE, hidden_KLH)
    assert_close(found_TLH, expected_TLH)
    assert_close(after_KLH, expected_KLH)
    wanted, weights = [input_TLE, *cell.parameters()], draw(9, LANES, HIDDEN, seed=3)
    found, expected = (torch.autograd.grad((each * weights).sum(), wanted) for each in (found_TLH, expected_TLH))
    assert_close(found, expected, tolerance=1e-11)


# --- minLSTM


@pytest.mark.parametrize("num_steps", [SCAN_STEPS - 1, SCAN_STEPS, SCAN_STEPS + 1, 3 * SCAN_STEPS + 2])
@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_the_scan_equals_a_loop_whatever_its_length_and_the_gates(num_steps, size):
    cell = minlstm_of(1)
    input_TLE = draw(num_steps, LANES, INPUT) * size
    hidden_KLH = draw(1, LANES, HIDDEN, seed=2).abs()
    found_TLH, _ = cell(input_TLE, (hidden_KLH,), keys_SL=None)
    assert_close(found_TLH, looped(cell, minlstm_step, input_TLE, hidden_KLH)[0])


def test_a_state_of_zeros_leaves_no_trace_and_no_nan():
    log_keep_TLH, log_new_TLH = (-draw(5, LANES, HIDDEN, seed=seed).abs() for seed in (1, 2))
    hidden_1LH = torch.zeros(1, LANES, HIDDEN, dtype=torch.float64)
    hidden_1LH[0, 0, 0] = 2.0
    inputs = [each.requires_grad_() for each in (log_keep_TLH, log_new_TLH, hidden_1LH)]
    hidden_TLH = scan(*inputs)
    assert_close(hidden_TLH[0], log_keep_TLH[0].exp() * hidden_1LH[0] + log_new_TLH[0].exp())
    hidden_TLH.sum().backward()
    assert all(each.grad.isfinite().all() for each in inputs)
    assert_close(hidden_1LH.grad[0, 0, 0], log_keep_TLH[:, 0, 0].cumsum(0).exp().sum())


def test_long_scans_of_fp32_are_as_exact_as_short_ones():
    """Without cutting, the sum of 1,000 logarithms of -8 costs four digits."""
    log_keep_TLH, log_new_TLH = -8 - draw(1000, 1, 40).abs(), draw(1000, 1, 40, seed=2)
    found_TLH = scan(log_keep_TLH.float(), log_new_TLH.float(), torch.zeros(1, 1, 40))
    expected_TLH = scan(log_keep_TLH, log_new_TLH, torch.zeros(1, 1, 40, dtype=torch.float64))
    torch.testing.assert_close(found_TLH.double(), expected_TLH, rtol=1e-4, atol=0)


def test_the_positive_function_has_no_leap_and_its_gradient_no_nan():
    x = torch.tensor([-800.0, -21.0, -0.5, -1e-9, 0.0, 1e-9, 1.0, 800.0], dtype=torch.float64, requires_grad=True)
    found = log_positive(x)
    found.sum().backward()
    assert_close(found[3:6].exp(), torch.full((3,), 0.5, dtype=torch.float64), tolerance=1e-8)
    expected = [-800.0, -21.0 - math.log1p(math.exp(-21)), -math.log1p(math.exp(0.5)), math.log(1.5), math.log(800.5)]
    assert_close(found[[0, 1, 2, 6, 7]], torch.tensor(expected, dtype=torch.float64))
    assert_close(x.grad[[0, 7]], torch.tensor([1.0, 1 / 800.5], dtype=torch.float64))
    assert x.grad.isfinite().all()


def test_under_bf16_the_scan_is_in_fp32(monkeypatch):
    cell, seen = minlstm_of(2).float(), []

    def watched(*arguments):
        seen.extend(each.dtype for each in arguments)
        return scan(*arguments)

    monkeypatch.setattr(minlstm, "scan", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_TLH, state = cell(draw(5, LANES, INPUT).float(), cell.zero_state(LANES), keys_SL=None)
    assert {*seen, hidden_TLH.dtype, state[0].dtype} == {torch.float32}


# --- the window


@pytest.mark.parametrize("context_size", [1, 2, 4, 12])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("pieces", [9, [4, 1, 3, 1]])
def test_the_window_equals_its_formula(context_size, direct, pieces):
    cell = window_of(context_size, direct=direct)
    assert len([*cell.parameters()]) == 2 + direct
    input_TLE = draw(9, LANES, INPUT)
    found_TLH, (inputs_CLE,) = in_pieces(cell, input_TLE, pieces)
    nothing = torch.zeros(INPUT, dtype=torch.float64)
    for t, lane in torch.cartesian_prod(torch.arange(9), torch.arange(LANES)).tolist():
        words = [input_TLE[i, lane] if i >= 0 else nothing for i in range(t - context_size + 1, t + 1)]
        expected = torch.tanh(cell.hidden.weight @ torch.cat(words) + cell.hidden.bias)
        if direct:
            expected = expected + cell.direct.weight @ torch.cat(words)
        assert_close(found_TLH[t, lane], expected)
    kept = torch.cat([nothing.expand(12, LANES, INPUT), input_TLE])[12 + 9 - (context_size - 1) :]
    assert torch.equal(inputs_CLE, kept)


def test_the_window_carries_what_was_dropped_as_it_was_read():
    cell = window_of(dropout=0.4)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=1))
    input_TLE = draw(6, LANES, INPUT)
    found_TLH, state = cell(input_TLE, cell.zero_state(LANES), keys_SL=keys_SL)
    dropped_TLE = lane_dropout(input_TLE, keys_SL[0], p=0.4)
    expected_TLH, expected = cell(dropped_TLE, cell.zero_state(LANES), keys_SL=None)
    assert_close((found_TLH, state), (expected_TLH, expected))


# --- the transformer


def normed(norm, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * (1 + norm.gain_H) + norm.bias_H


def attended(layer, normed_TH, t, *, memory_size):
    """What the query at time t of one lane takes from itself and the `memory_size` before it."""
    query_H, places = layer.query(normed_TH[t]), range(max(0, t - memory_size), t + 1)
    key_RH, value_RH = (torch.stack([layer.key_value(normed_TH[j]) for j in places])).chunk(2, dim=-1)
    heads, width = [], HIDDEN // 2
    for a in range(2):
        part = slice(a * width, (a + 1) * width)
        logits = [
            query_H[part] @ key_RH[r, part] / math.sqrt(width) - 2.0 ** (-4 * (a + 1)) * (t - j)
            for r, j in enumerate(places)
        ]
        shares = torch.stack(logits).exp() / torch.stack(logits).exp().sum()
        heads.append(shares @ value_RH[:, part])
    return layer.attended(torch.cat(heads))


def written_out(cell, input_TLE):
    """A text from its start, each lane and each token on its own."""
    lanes = []
    for input_TE in input_TLE.unbind(1):
        hidden_TH = cell.project(input_TE)
        for layer in cell.layers:
            normed_TH = normed(layer.attention_norm, hidden_TH)
            taken = [attended(layer, normed_TH, t, memory_size=cell.memory_size) for t in range(len(hidden_TH))]
            hidden_TH = hidden_TH + torch.stack(taken)
            first, _, second = layer.feed_forward
            inner = first(normed(layer.feed_norm, hidden_TH))
            hidden_TH = hidden_TH + second(inner * (1 + torch.erf(inner / math.sqrt(2))) / 2)
        lanes.append(normed(cell.norm, hidden_TH))
    return torch.stack(lanes, dim=1)


@pytest.mark.parametrize("memory_size", [1, 3, 20])
@pytest.mark.parametrize("pieces", [14, [5, 1, 1, 4, 3], 1])
@pytest.mark.parametrize("input_size", [INPUT, HIDDEN])
def test_the_transformer_equals_its_formula_however_the_text_is_cut(memory_size, pieces, input_size):
    cell = transformer_of(memory_size, input_size=input_size)
    input_TLE = draw(14, 2, input_size)
    found_TLH, (memory_CLH, filled_1L1) = in_pieces(cell, input_TLE, pieces)
    assert_close(found_TLH, written_out(cell, input_TLE))
    assert filled_1L1.flatten().tolist() == [min(14, memory_size)] * 2
    of_layer_1 = memory_CLH[:memory_size][-min(14, memory_size) :]
    assert_close(of_layer_1, cell.project(input_TLE)[-min(14, memory_size) :])


@pytest.mark.parametrize("pieces", [12, [2, 3, 2, 5]])
def test_the_transformer_sees_so_far_back_and_no_further(pieces):
    cell = transformer_of(3, num_layers=2)
    input_TLE = draw(12, 1, INPUT).requires_grad_()
    in_pieces(cell, input_TLE, pieces)[0][11].sum().backward()
    seen = input_TLE.grad.abs().sum((1, 2)) > 0
    assert seen.tolist() == [t >= 11 - 2 * 3 for t in range(12)]  # each layer reads what the one below it read


def test_lanes_whose_memory_is_filled_otherwise_end_as_they_would_alone():
    """Lanes 0 and 2 lack the last step of a first window, so that a token less is in their memory."""
    cell, short_L = transformer_of(9), torch.tensor([True, False, True, False])
    first, second = draw(4, LANES, INPUT), draw(3, LANES, INPUT, seed=2)
    _, state = cell(first, cell.zero_state(LANES), keys_SL=None, short_L=short_L)
    assert state[1].flatten().tolist() == [3, 4, 3, 4]
    found_TLH, after = cell(second, state, keys_SL=None)
    for lane in range(LANES):
        own = first[: 4 - int(short_L[lane]), lane : lane + 1]
        whole_TLH, whole = cell(torch.cat([own, second[:, lane : lane + 1]]), cell.zero_state(1), keys_SL=None)
        assert_close(found_TLH[:, lane : lane + 1], whole_TLH[-3:])
        num_filled = int(whole[1])
        for found, expected in zip(after[0][:, lane].chunk(2), whole[0][:, 0].chunk(2), strict=True):
            assert_close(found[-num_filled:], expected[-num_filled:])


@pytest.mark.parametrize("cell", [window_of(), transformer_of()], ids=["window", "transformer"])
def test_what_stands_in_a_lacking_place_reaches_neither_state_nor_gradient(cell):
    short_L = torch.tensor([True, False, False, True])
    input_TLE = draw(2, LANES, INPUT).requires_grad_()
    _, after = cell(input_TLE, cell.zero_state(LANES), keys_SL=None, short_L=short_L)
    sum(each.square().sum() for each in after if each.requires_grad).backward()
    assert (input_TLE.grad[-1, short_L] == 0).all()
    assert (input_TLE.grad[-1, ~short_L] != 0).all()


def test_the_bias_hides_what_is_ahead_too_far_back_or_not_there():
    bias_LATR = attention_bias(2, torch.tensor([1.0, 2.0]), memory_size=2, num_heads=2)
    hidden = -math.inf
    assert bias_LATR[:, 0].tolist() == [  # its slope is 1/16
        [[hidden, -1 / 16, 0, hidden], [hidden, -2 / 16, -1 / 16, 0]],
        [[-2 / 16, -1 / 16, 0, hidden], [hidden, -2 / 16, -1 / 16, 0]],
    ]
    assert torch.equal(bias_LATR[:, 1], bias_LATR[:, 0] / 16)


def test_the_transformer_drops_its_input_and_what_each_part_adds(monkeypatch):
    sites = []
    monkeypatch.setattr(
        transformer, "lane_dropout", lambda x, keys_L, *, p: sites.append((keys_L.tolist(), p, x.shape)) or x
    )
    cell = transformer_of(dropout=0.4, num_layers=2)
    keys_SL = torch.arange(5 * LANES, dtype=torch.int32).view(5, LANES)
    cell(draw(3, LANES, INPUT), cell.zero_state(LANES), keys_SL=keys_SL)
    assert sites == [(keys_L.tolist(), 0.4, (3, LANES, HIDDEN)) for keys_L in keys_SL]
    assert cell.num_sites == 5


def test_a_part_that_is_dropped_adds_nothing():
    """With nearly all dropped, what is left of the layers is the input, of which nothing is left either."""
    cell = transformer_of(dropout=1 - 1 / 65536)
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=2, lanes=range(LANES), num_sites=5))
    found_TLH, _ = cell(draw(3, LANES, INPUT), cell.zero_state(LANES), keys_SL=keys_SL)
    assert_close(found_TLH, cell.norm.bias_H.expand(3, LANES, HIDDEN))


def test_the_norm_is_torchs_with_its_gain_counted_from_1():
    norm, theirs = drawn(Norm(HIDDEN)), nn.LayerNorm(HIDDEN, dtype=torch.float64)
    theirs.load_state_dict({"weight": 1 + norm.gain_H, "bias": norm.bias_H})
    x = draw(3, LANES, HIDDEN) * 5 + 2
    assert_close(norm(x), theirs(x))
