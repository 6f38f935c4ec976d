"""What an old configuration and an old identity hold under other names, or without meaning, is read as of today."""

import pytest

from pipeline.upgrades import stored_identity, upgraded_configuration, upgraded_identity, upgraded_manifest

SIZES = {"hidden_size": 8, "num_layers": 2, "projection_size": None}
NONE = {
    **dict.fromkeys(["input_dropout", "layer_dropout", "output_dropout"]),
    **dict.fromkeys(["embedding_dropout", "activation", "temporal"], 0.0),
    "locked": False,
}


@pytest.mark.parametrize("kind", ["adaptive", "full"])
def test_a_models_section_of_before_is_one_of_today(kind):
    softmax = {"kind": kind, "cutoffs": [], "div_value": 4.0}
    before = {"model": {"dropout": 0.1, **SIZES, "softmax": softmax}}
    today = upgraded_configuration(before)
    assert today["model"] == {
        "kind": "recurrent",
        "dropout": 0.1,
        "softmax": softmax if kind == "adaptive" else {"kind": "full"},
        "input": {"kind": "full"},
        "recurrence": {**SIZES, "kind": "lstm", "last_size": None, "weight_dropout": 0.0},
        "recurrence_init_scale": None,
        "regularization": NONE,
    }
    assert upgraded_configuration(today) == today
    assert before["model"]["hidden_size"] == 8  # it is left as it was


def test_an_input_layer_that_is_there_stays_and_a_model_of_before_has_the_full_one():
    adaptive = {"kind": "adaptive", "cutoffs": [3], "div_value": 4.0}
    assert upgraded_configuration({"model": {"input": adaptive}})["model"]["input"] == adaptive
    assert upgraded_configuration({"model": 3})["model"] == 3  # for its reader to refuse
    assert upgraded_identity({}, needed=["model.input.kind"]) == {"model.input.kind": '"full"'}


def test_an_identity_is_read_under_both_names_and_stored_under_the_former():
    today = {f"model.recurrence.{key}": f"{value}" for key, value in SIZES.items()} | {"model.dropout": "0.1"}
    stored = stored_identity(today)
    assert stored == {f"model.{key}": f"{value}" for key, value in SIZES.items()} | {"model.dropout": "0.1"}
    needed = [*today, "model.recurrence.kind"]
    expected = {**today, "model.recurrence.kind": '"lstm"'}
    assert upgraded_identity(stored, needed=needed) == upgraded_identity(today, needed=needed) == expected
    toy = {**today, "model.recurrence.kind": '"toy"'}
    assert upgraded_identity(stored_identity(toy), needed=needed) == toy


def test_what_meant_nothing_of_a_full_softmax_is_no_part_of_its_identity():
    softmax = {"model.softmax.cutoffs": "[2000]", "model.softmax.div_value": "4.0"}
    full, adaptive = ({"model.softmax.kind": f'"{kind}"'} for kind in ("full", "adaptive"))
    assert upgraded_identity(full | softmax, needed=[*full]) == full
    assert upgraded_identity(adaptive | softmax, needed=[*adaptive, *softmax]) == adaptive | softmax


def test_a_manifest_with_all_keys_comes_back_equal_and_its_shards_are_not_copied():
    splits = {"train": {"shards": [{"name": "a"}]}}
    before = {"splits": splits, "configuration": {"words": "words"}, "versions": {}}
    today = upgraded_manifest(before)
    assert "versions" not in today
    assert today["splits"]["train"]["num_nul_bytes"] is None
    assert today["configuration"]["words"] == "words"
    assert today["configuration"]["shard_tokens"] is None
    assert before == {
        "splits": {"train": {"shards": [{"name": "a"}]}},
        "configuration": {"words": "words"},
        "versions": {},
    }
    assert upgraded_manifest(today) == today
    assert upgraded_manifest(today)["splits"]["train"]["shards"] is splits["train"]["shards"]


@pytest.mark.parametrize("splits", [None, 3, [], {"train": 3}, {"train": []}])
def test_a_manifest_of_another_shape_is_left_to_its_reader(splits):
    assert upgraded_manifest({"splits": splits})["splits"] == splits


def test_a_run_of_before_reads_its_text_as_it_lies():
    needed = ["stream.bptt", "stream.order"]
    assert upgraded_identity({"stream.bptt": "7"}, needed=needed) == {
        "stream.bptt": "7",
        "stream.order": '"sequential"',
    }


def test_a_section_gets_no_keys_of_another_kind():
    """Those of the LSTM came later, and a run of before may have a cell of the user's own."""
    today = upgraded_configuration({"model": {"recurrence": {"kind": "toy", "width": 3}}})
    assert today["model"]["recurrence"] == {"kind": "toy", "width": 3}
    assert today["model"]["regularization"] == NONE
    assert upgraded_configuration(today) == today
