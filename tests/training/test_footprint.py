"""What a training step holds, as it is worked out, beside what torch then keeps of a real one."""

import json
from itertools import accumulate, product

import numpy as np
import pytest
import torch
from support.kinds import RECURRENT
from support.sections import model_section
from support.tables import toys_added

from pipeline.config import Config, load
from pipeline.model.dropout import lane_keys
from pipeline.model.language_model import LanguageModel
from pipeline.training.footprint import (
    activation_bytes,
    autocast,
    backward_bytes,
    count_parameters,
    expected_words,
    optimizer_bytes,
    shapes_of,
    weight_bytes,
)
from pipeline.training.optimization import build_optimizer
from pipeline.training.parts import bf16_is_native, build_model
from pipeline.training.tiling import fitted_model

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
V, T = 3000, 12
COUNTS = (1e7 / np.arange(1, V + 1)).astype(np.int64)
OPTIMIZERS = [("sgd", 0.0), ("sgd", 0.9), ("adagrad", 0.0), ("adam", 0.0), ("adamw", 0.0)]


@pytest.fixture(autouse=True, scope="module")
def kinds_from_outside():
    """Cells and layers that are no part of the package."""
    with toys_added():
        yield


def targets_of(model, targets_N):
    """As training has them."""
    sample = model.softmax.sampler(counts=lambda: COUNTS, seed=1)
    return (*model.softmax.prepare_targets(targets_N), *sample(0, targets_N))


def counted(model, lanes, *, bf16):
    """Bytes of the storages that a real forward pass saves, parameters aside."""
    targets_N = np.random.default_rng(1).choice(V, size=T * lanes, p=COUNTS / COUNTS.sum())
    sites = {"num_sites": model.num_sites, "num_shared_sites": model.num_shared_sites}
    keys_SL = torch.from_numpy(lane_keys(seed=1, step=0, lanes=range(lanes), **sites))
    inputs_TL = torch.from_numpy(targets_N).view(T, lanes)
    known = {each.data_ptr() for each in model.parameters()}
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast("cpu", bf16=bf16):
        hidden_TLH, *_ = kept = model.hidden_and_penalty(
            inputs_TL,
            model.recurrence.zero_state(lanes),
            keys_SL=keys_SL,
            num_targets=T * lanes,
            num_pairs=(T - 1) * lanes,
        )
        nats_N = model.nats(hidden_TLH, targets_of(model, targets_N))
    del kept, nats_N
    return sum(storage.nbytes() for address, storage in saved.items() if address not in known)


@pytest.fixture
def numerics(request):
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = not request.param or bf16_is_native()
    yield request.param
    torch.backends.mkldnn.enabled = before


LAYERS = list(product((1, 2), (None, 24), (0.0, 0.3)))


@pytest.mark.parametrize("numerics", [False, True], indirect=True, ids=["fp32", "bf16"])
@pytest.mark.parametrize("cutoffs, div_value, tied", [((), 1, False), ((200, 900), 4, False), ((200, 900), 1, True)])
@pytest.mark.parametrize("num_layers, projection_size, dropout", LAYERS)
def test_activations_are_those_that_torch_saves(
    numerics, cutoffs, div_value, tied, num_layers, projection_size, dropout
):
    section = model_section(
        embedding_size=(projection_size or 48) if tied else 40,
        hidden_size=48,
        num_layers=num_layers,
        projection_size=projection_size,
        dropout=dropout,
        tied=tied,
        cutoffs=cutoffs,
        div_value=div_value,
    )
    planned = activation_bytes(section, counts_V=COUNTS, bptt=T, bf16=numerics, device="cpu")
    model = LanguageModel(section, vocab_size=V)
    for lanes in (3, 48):
        found = counted(model, lanes, bf16=numerics)
        # few targets are drawn otherwise than their share; many are not
        tolerance = 0.1 if lanes == 48 or not cutoffs else 0.3
        assert planned(lanes) == pytest.approx(found, rel=tolerance)


@pytest.mark.parametrize("numerics", [False, True], indirect=True, ids=["fp32", "bf16"])
@pytest.mark.parametrize("cutoffs, div_value, tied", [((), 1, False), ((200, 900), 4, False), ((200, 900), 1, True)])
def test_a_step_needs_no_more_than_is_planned(tmp_path, numerics, cutoffs, div_value, tied):
    """The most that is allocated at once, gradients included, beside what is planned of it."""
    section = model_section(
        embedding_size=48, hidden_size=48, dropout=0.0, tied=tied, cutoffs=cutoffs, div_value=div_value
    )
    model, lanes, about = LanguageModel(section, vocab_size=V), 128, {"counts_V": COUNTS, "bptt": T, "bf16": numerics}
    words_N = expected_words(COUNTS, T * lanes)
    inputs_TL, keys_SL = (
        torch.from_numpy(words_N).view(T, lanes),
        torch.zeros(model.num_sites, lanes, dtype=torch.int32),
    )
    with torch.profiler.profile(profile_memory=True) as profile:
        with autocast("cpu", bf16=numerics):
            targets = targets_of(model, words_N)
            nats_N, _ = model(inputs_TL, model.recurrence.zero_state(lanes), targets, keys_SL=keys_SL)
        nats_N.sum().backward()
    peak = most_allocated(profile, tmp_path / "trace.json")
    kept, added = activation_bytes(section, **about, device="cpu")(lanes), backward_bytes(section, **about)(lanes)
    assert 0.95 * (kept + added) <= peak <= kept + added + weight_bytes(model)


def most_allocated(profile, path):
    profile.export_chrome_trace(str(path))
    changes = [each for each in json.loads(path.read_text())["traceEvents"] if each.get("name") == "[memory]"]
    changes.sort(key=lambda each: each["ts"])
    return max(accumulate(each["args"]["Bytes"] for each in changes))


@pytest.mark.parametrize("numerics", [False, True], indirect=True, ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_every_recurrence_is_counted(small_config, numerics, kind):
    section = small_config(f"model.recurrence.kind={kind}", "model.softmax.kind=full").model
    planned = activation_bytes(section, counts_V=COUNTS, bptt=T, bf16=numerics, device="cpu")
    model = build_model(section, vocab_size=V)
    for lanes in (3, 40):
        assert planned(lanes) == pytest.approx(counted(model, lanes, bf16=numerics), rel=0.02)


REGULARIZED = {
    "last_size": 40,
    "weight_dropout": 0.5,
    "locked": True,
    "embedding_dropout": 0.1,
    "activation": 2.0,
    "temporal": 1.0,
}


@pytest.mark.parametrize("numerics", [False, True], indirect=True, ids=["fp32", "bf16"])
@pytest.mark.parametrize("locked", [True, False])
def test_what_regularization_keeps_is_counted_too(numerics, locked):
    sizes = {"embedding_size": 40, "hidden_size": 64, "num_layers": 3, "cutoffs": (), "div_value": 1}
    section = model_section(**sizes, **REGULARIZED | {"locked": locked}, dropout=0.3, tied=True)
    planned = activation_bytes(section, counts_V=COUNTS, bptt=T, bf16=numerics, device="cpu")
    model = LanguageModel(section, vocab_size=V)
    for lanes in (3, 48):
        assert planned(lanes) == pytest.approx(counted(model, lanes, bf16=numerics), rel=0.02)
    plain = model_section(**sizes, last_size=40, dropout=0.3, tied=True)
    without = activation_bytes(plain, counts_V=COUNTS, bptt=T, bf16=numerics, device="cpu")
    recurrent = 4 * (64 * 64 + 64 * 64 + 40 * 40)  # entries: whether each stays; in bf16 they are copied anyway
    if not locked:
        assert planned(3) - without(3) >= (1 if numerics else 5) * recurrent


@pytest.mark.parametrize("kinds", [("trio", "grouped"), ("decay", "full")], ids="-".join)
def test_kinds_from_outside_are_counted_too(small_config, kinds):
    section = small_config(f"model.recurrence.kind={kinds[0]}", f"model.softmax.kind={kinds[1]}").model
    planned = activation_bytes(section, counts_V=COUNTS, bptt=T, bf16=False, device="cpu")
    assert planned(40) == pytest.approx(counted(build_model(section, vocab_size=V), 40, bf16=False), rel=0.02)


SAMPLED = [["model.softmax.kind=sampled"], ["model.softmax.kind=nce"], ["model.softmax.kind=blackout"]]
SIZES = ["model.softmax.num_samples=100", "model.embedding_size=48", "model.recurrence.hidden_size=48"]
NARROW = ["model.input.kind=adaptive", "model.embedding_size=48", "model.softmax.kind=full", "model.dropout=0"]


@pytest.mark.parametrize("numerics", [False, True], indirect=True, ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("overrides", [*([*each, *SIZES] for each in SAMPLED), NARROW], ids=lambda each: each[0])
def test_sampled_losses_and_an_adaptive_input_are_counted_too(small_config, numerics, tied, overrides):
    if tied and overrides is NARROW:
        overrides = ["model.input.kind=adaptive", "model.tied=true", "model.recurrence.hidden_size=6"]
        overrides += ["model.input.div_value=2"]
    else:
        overrides = [*overrides, f"model.tied={json.dumps(tied)}"]
    section = fitted_model(small_config(*overrides).model, vocab_size=V)
    planned = activation_bytes(section, counts_V=COUNTS, bptt=T, bf16=numerics, device="cpu")
    model = build_model(section, vocab_size=V)
    for lanes in (8, 48):
        assert planned(lanes) == pytest.approx(counted(model, lanes, bf16=numerics), rel=0.1)
    found = count_parameters(shapes_of(section, vocab_size=V))
    assert found.total == sum(each.numel() for each in model.parameters())
    assert found.embedding == sum(
        each.numel() for name, each in model.named_parameters() if name.split(".")[0] in ("embedding_VE", "input")
    )
    assert min(found.embedding, found.recurrence, found.softmax) > 0


@pytest.mark.parametrize(("name", "momentum"), OPTIMIZERS)
@pytest.mark.parametrize("tied", [False, True])
def test_weights_and_the_optimizers_state_are_exact(small_config, name, momentum, tied):
    optim = small_config().optim.model_copy(update={"name": name, "momentum": momentum})
    section = model_section(embedding_size=6, hidden_size=6, dropout=0.0, tied=tied, cutoffs=(10, 30), div_value=1)
    model = build_model(section, vocab_size=60)
    real = build_optimizer(model.parameters(), optim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    real.step()
    state = [each for kept in real.state.values() for each in kept.values() if isinstance(each, torch.Tensor)]
    shapes = shapes_of(section, vocab_size=60)
    assert optimizer_bytes(optim, shapes.parameters()) == sum(each.nbytes for each in state)
    assert weight_bytes(shapes) == sum(each.nbytes for each in model.parameters())
    assert weight_bytes(shapes) == sum(each.grad.nbytes for each in model.parameters())


def test_parameters_by_part():
    section = model_section(embedding_size=4, hidden_size=4, dropout=0.0, tied=True, cutoffs=(), div_value=1)
    found = count_parameters(shapes_of(section, vocab_size=10))
    assert found.embedding == 10 * 4
    assert found.recurrence == 2 * (16 * 4 + 16 * 4 + 16 + 16)
    assert found.softmax == 10  # its bias; the weights are the embedding's
    assert found.total == found.embedding + found.recurrence + found.softmax


def test_a_vocabulary_of_any_size_costs_nothing():
    section = load(Config, ["experiment=lm1b_lstm2048", "model.embedding_size=2048", "model.softmax.kind=full"]).model
    shapes = shapes_of(section, vocab_size=8_000_000)
    assert weight_bytes(shapes) > 130e9
    assert {each.device.type for each in shapes.parameters()} == {"meta"}


def test_words_share_a_vocabulary_as_its_counts_do():
    assert expected_words(np.array([50, 0, 30, 20]), 10).tolist() == [0] * 5 + [2] * 3 + [3] * 2
    assert expected_words(np.zeros(4, dtype=np.int64), 4).tolist() == [0, 1, 2, 3]
