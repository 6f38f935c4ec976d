"""The configuration: what is refused, in which words, and that text reaches its field as it was typed."""

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.__main__ import VERBS
from pipeline.config import (
    CONF,
    KINDS,
    Config,
    EvaluateConfig,
    PlanConfig,
    ReportConfig,
    RunConfig,
    SubmitConfig,
    VerifyConfig,
    flat,
    groups,
    leaves,
    load,
    nearest,
    sections,
    shown,
    validated,
)
from pipeline.errors import ConfigError
from pipeline.upgrades import RENAMED

EXPERIMENTS = groups(Config)["experiment"]
CUTOFFS = "model.softmax.cutoffs"
TREES = {file: schema for _, schema, file, _ in VERBS.values()}  # by the file of conf/
MODELS = ", ".join(groups(Config)["model"])
SOFTMAXES = " or ".join(repr(kind) for kind in KINDS["model.softmax"])


def refused(message):
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


# --- keys and choices


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.dropout=0.1", "unknown key modle.dropout; did you mean model.dropout?"),
        ("model.dropuot=0.1", "unknown key model.dropuot; did you mean model.dropout?"),
        ("lanes=3", "unknown key lanes"),
        ("xyzzy=1", "unknown key xyzzy"),
        ("+data=x", "unknown key +data; did you mean data?"),
        ("++stream.bptt=3", "unknown key ++stream.bptt; did you mean stream.bptt?"),
        ("modle=lstm", "unknown key modle; did you mean model?"),
        ("stream={bptt: 3}", "unknown key stream; did you mean stream.seed?"),
        ("hydra.verbose=x", "unknown key hydra.verbose"),
        ("data", "argument 'data' is not of the form key=value"),
        ("~data", "argument '~data' is not of the form key=value"),
        ("=x", "argument '=x' is not of the form key=value"),
        ("", "argument '' is not of the form key=value"),
        ("data=", "data= has no value; give one, or null"),
        ("stream.bptt=", "stream.bptt= has no value; give one, or null"),
        ("optim=adamm", "optim=adamm is not one of adagrad, adam, adamw, sgd; did you mean adam?"),
        ("optim=zzz", "optim=zzz is not one of adagrad, adam, adamw, sgd"),
        ("model=lsmt", f"model=lsmt is not one of {MODELS}; did you mean lstm?"),
        ("model=", f"model= is not one of {MODELS}"),
        ("cluster=null", "cluster=null is not one of local, none, ray"),
        ("corpus=file", "corpus=file is not one of datasets, files; did you mean files?"),
    ],
)
def test_unknown_keys_and_choices_are_refused_with_the_nearest(override, message):
    with refused(message):
        load(Config, [override])


def test_a_verb_knows_the_keys_of_its_own_tree_only():
    with refused("unknown key stream.bptt"):
        load(VerifyConfig, ["stream.bptt=3"], name="verify")
    with refused("unknown key model"):
        load(VerifyConfig, ["model=lstm"], name="verify")
    with refused("unknown key splt; did you mean split?"):
        load(EvaluateConfig, ["splt=valid"], name="evaluate")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=a", "data=b"], "data is given twice, as a and as b; give it once"),
        (["data=a=b", "data=null"], "data is given twice, as a=b and as null; give it once"),
        (["data=a", "data=a"], "data is given twice, as a and as a; give it once"),
        (["data=a", "data=b", "data=c"], "data is given twice, as a and as b; give it once"),
        (["stream.bptt=3", "data=a", "stream.bptt=4"], "stream.bptt is given twice, as 3 and as 4; give it once"),
        (["corpus.train=a", "corpus.train=[b,c]"], "corpus.train is given twice, as a and as [b,c]; give it once"),
        (["optim=sgd", "optim=adam"], "optim is given twice, as sgd and as adam; give it once"),
        (["experiment=demo", "experiment=demo"], "experiment is given twice, as demo and as demo; give it once"),
        (["model.softmax.kind=full"] * 2, "model.softmax.kind is given twice, as full and as full; give it once"),
        (["extensions=csv", "extensions=[json]"], "extensions is given twice, as csv and as [json]; give it once"),
    ],
)
def test_a_key_given_twice_is_refused_with_both_values(overrides, message):
    with refused(message):
        load(Config, overrides)


@pytest.mark.parametrize(("former", "today"), RENAMED.items())
def test_a_former_name_and_the_one_of_today_are_one_key(former, today):
    for first, second in ((former, today), (today, former), (former, former)):
        with refused(f"{today} is given twice, as 30 and as 40; give it once"):
            load(Config, [f"{first}=30", f"{second}=40"])


@pytest.mark.parametrize(
    ("word", "expected"), [("sgdd", "; did you mean sgd?"), ("sgd", "; did you mean sgd?"), ("zzz", ""), ("", "")]
)
def test_nearest(word, expected):
    assert nearest(word, ["adam", "sgd"]) == expected


# --- values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream.num_lanes=0", "stream.num_lanes=0: it must be greater than or equal to 1"),
        ("stream.num_lanes=1.5", "stream.num_lanes=1.5: it must be a valid integer"),
        ("stream.num_lanes=many", 'stream.num_lanes="many": it must be a valid integer'),
        ("stream.num_lanes=020", 'stream.num_lanes="020": it must be a valid integer'),
        ("stream.num_lanes=null", "stream.num_lanes=null: it must be a valid integer"),
        ("stream.num_lanes=true", "stream.num_lanes=true: it must be a valid integer"),
        ("stream.num_lanes={a:1}", 'stream.num_lanes={"a": 1}: it must be a valid integer'),
        ("stream.bptt=-1", "stream.bptt=-1: it must be greater than or equal to 1"),
        ("stream.seed=-1", "stream.seed=-1: it must be greater than or equal to 0"),
        ("stream.state=carri", "stream.state=\"carri\": it must be 'reset' or 'carry'; did you mean carry?"),
        ("stream.verify=all", "stream.verify=\"all\": it must be 'digest' or 'size'"),
        ("max_steps=0", "max_steps=0: it must be greater than or equal to 1, or null"),
        ("max_epochs=0", "max_epochs=0: it must be greater than or equal to 1, or null"),
        ("precision=fp16", "precision=\"fp16\": it must be 'fp32' or 'bf16'; did you mean bf16?"),
        ("accelerator=gpu", "accelerator=\"gpu\": it must be 'auto', 'cpu' or 'cuda'; did you mean cpu?"),
        ("optim.lr=0", "optim.lr=0: it must be greater than 0"),
        ("optim.lr=nan", "optim.lr=NaN: it must be a finite number"),
        ("optim.lr=inf", "optim.lr=Infinity: it must be a finite number"),
        ("optim.lr=true", "optim.lr=true: it must be a valid number"),
        ("optim.clip_norm=0", "optim.clip_norm=0: it must be greater than 0, or null"),
        ("optim.clip_norm=x", 'optim.clip_norm="x": it must be a valid number, or null'),
        ("optim.momentum=1", "optim.momentum=1: it must be less than 1"),
        ("optim.weight_decay=-0.1", "optim.weight_decay=-0.1: it must be greater than or equal to 0"),
        ("optim.weight_decay=inf", "optim.weight_decay=Infinity: it must be a finite number"),
        ("optim.name=sgdd", "optim.name=\"sgdd\": it must be 'sgd', 'adagrad', 'adam' or 'adamw'; did you mean sgd?"),
        ("optim.schedule.divide_by=1", "optim.schedule.divide_by=1: it must be greater than 1"),
        ("optim.schedule.divide_by=inf", "optim.schedule.divide_by=Infinity: it must be a finite number"),
        ("optim.schedule.patience=0", "optim.schedule.patience=0: it must be greater than or equal to 1"),
        ("model.dropout=1", "model.dropout=1: it must be less than 1"),
        ("model.dropout=-0.1", "model.dropout=-0.1: it must be greater than or equal to 0"),
        ("model.tied=yes", 'model.tied="yes": it must be a valid boolean'),
        ("model.tied=1", "model.tied=1: it must be a valid boolean"),
        ("model.init_scale=0", "model.init_scale=0: it must be greater than 0"),
        ("model.recurrence_init_scale=0", "model.recurrence_init_scale=0: it must be greater than 0, or null"),
        (
            "model.regularization.input_dropout=1",
            "model.regularization.input_dropout=1: it must be less than 1, or null",
        ),
        (
            "model.regularization.embedding_dropout=1",
            "model.regularization.embedding_dropout=1: it must be less than 1",
        ),
        (
            "model.regularization.temporal=-1",
            "model.regularization.temporal=-1: it must be greater than or equal to 0",
        ),
        ("model.regularization.activation=inf", "model.regularization.activation=Infinity: it must be a finite number"),
        ("model.recurrence.weight_dropout=1", "model.recurrence.weight_dropout=1: it must be less than 1"),
        (
            "model.projection_size=0",
            "model.recurrence.projection_size=0: it must be greater than or equal to 1, or null",
        ),
        ("model.softmax.div_value=0.5", "model.softmax.div_value=0.5: it must be greater than or equal to 1"),
        ("model.softmax.div_value=inf", "model.softmax.div_value=Infinity: it must be a finite number"),
        (f"{CUTOFFS}=[1,a]", f'{CUTOFFS}="a": it must be a valid integer'),
        (f"{CUTOFFS}=[0,5]", f"{CUTOFFS}=0: it must be greater than or equal to 1"),
        ("corpus.vocabulary.size=2", "corpus.vocabulary.size=2: it must be greater than or equal to 3, or null"),
        ("corpus.vocabulary.min_count=0", "corpus.vocabulary.min_count=0: it must be greater than or equal to 1"),
        ("corpus.unit_bytes=1023", "corpus.unit_bytes=1023: it must be greater than or equal to 1024"),
        ("corpus.text_column=null", "corpus.text_column=null: it must be a valid string"),
        ("corpus.words=word", "corpus.words=\"word\": it must be 'whitespace' or 'words'; did you mean words?"),
        ("cluster.kind=raj", "cluster.kind=\"raj\": it must be 'none', 'local' or 'ray'; did you mean ray?"),
        ("cluster.num_cpus=0", "cluster.num_cpus=0: it must be greater than or equal to 1, or null"),
        ("checkpoint.keep_last=0", "checkpoint.keep_last=0: it must be greater than or equal to 1"),
        ("tracking.mode=of", "tracking.mode=\"of\": it must be 'online' or 'offline', or null"),
        (
            "tracking.prometheus_folder=s3://b/c",
            "tracking.prometheus_folder=s3://b/c must be a folder of this machine, from which node-exporter reads;"
            " use one, or null",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(override, message):
    with refused(message):
        load(Config, [override])


@pytest.mark.parametrize(
    "override",
    [
        "stream.num_lanes=1",
        "stream.seed=0",
        "optim.momentum=0.999",
        "optim.lr=1",  # an integer will do for a number
        "optim.schedule.min_lr=20.0",
        "model.dropout=0",
        "model.projection_size=199",
        f"{CUTOFFS}=[1]",
        "corpus.vocabulary.size=3",
        "corpus.vocabulary.size=null",
        "corpus.unit_bytes=1024",
        "checkpoint.keep_best=0",
        "optim.clip_norm=null",
    ],
)
def test_values_at_the_boundary_are_allowed(override):
    load(Config, [override])


@pytest.mark.parametrize("override", ["model.dropout=(", "model.dropout=a=b", "stream.bptt=1,2", "stream.bptt=${x}"])
def test_what_hydra_cannot_read_is_refused_in_one_line(override):
    with pytest.raises(ConfigError) as error:
        load(Config, [override])
    assert "\n" not in str(error.value)


# --- combinations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.source=datasets"], "corpus.dataset=null names no data set; give corpus.dataset=NAME"),
        (["corpus=datasets"], "corpus.dataset=null names no data set; give corpus.dataset=NAME"),
        (
            ["corpus.valid=x", "corpus.valid_fraction=0.25"],
            "corpus.valid is given and corpus.valid_fraction=0.25 would cut it from train; use corpus.valid_fraction=0",
        ),
        (
            ["corpus.test=x", "corpus.test_fraction=0.1"],
            "corpus.test is given and corpus.test_fraction=0.1 would cut it from train; use corpus.test_fraction=0",
        ),
        (
            ["corpus.valid_fraction=0.5", "corpus.test_fraction=0.5"],
            "corpus.valid_fraction + corpus.test_fraction=1 leaves no train; keep it below 1",
        ),
        (
            [f"{CUTOFFS}=[]"],
            f"{CUTOFFS}=[] leaves adaptive softmax no tail; give some or use kind=full",
        ),
        ([f"{CUTOFFS}=[3,2]"], f"{CUTOFFS}=[3, 2] must rise strictly"),
        ([f"{CUTOFFS}=[2,2]"], f"{CUTOFFS}=[2, 2] must rise strictly"),
        (
            ["model.recurrence.projection_size=200"],
            "model.recurrence.projection_size=200 must be below model.recurrence.hidden_size=200;"
            " use a smaller one or null",
        ),
        (
            ["model=transformer", "model.recurrence.num_heads=6"],
            "model.recurrence.num_heads=6 does not divide model.recurrence.hidden_size=200;"
            " use model.recurrence.num_heads=5",
        ),
        (
            ["model=window", "model.recurrence.num_layers=2"],
            "model.recurrence.num_layers is no key of model.recurrence.kind=window;"
            " leave it out or use model.recurrence.kind=lstm",
        ),
        (
            ["model.recurrence.projection_size=50", "model.recurrence.last_size=100"],
            "model.recurrence.last_size=100 and model.recurrence.projection_size=50 both give the output's width;"
            " set one of them to null",
        ),
        (
            ["model.recurrence.num_layers=1", "model.recurrence.last_size=100"],
            "model.recurrence.last_size=100 needs a layer below the last; use null and"
            " model.recurrence.hidden_size=100, or model.recurrence.num_layers=2",
        ),
        (
            ["model.tied=true", "model.softmax.kind=full", "model.recurrence.last_size=100"],
            "model.tied=true needs model.embedding_size=200 equal to the output's 100;"
            " use model.embedding_size=100 or model.tied=false",
        ),
        (
            ["model.tied=true", "model.softmax.div_value=1", "model.embedding_size=100"],
            "model.tied=true needs model.embedding_size=100 equal to the output's 200;"
            " use model.embedding_size=200 or model.tied=false",
        ),
        (
            ["model.tied=true", "model.softmax.div_value=1", "model.projection_size=50"],
            "model.tied=true needs model.embedding_size=200 equal to the output's 50;"
            " use model.embedding_size=50 or model.tied=false",
        ),
        (
            ["model.tied=true"],
            "model.tied=true shares rows of full width, model.softmax.div_value=4 narrows them;"
            " use model.softmax.div_value=1, model.input.kind=adaptive or model.tied=false",
        ),
        (
            ["model.tied=true", "model.input.kind=adaptive", "model.softmax.kind=nce"],
            "model.tied=true shares an adaptive input's clusters with an adaptive softmax alone, not with"
            " model.softmax.kind=nce; use model.softmax.kind=adaptive, model.input.kind=full or model.tied=false",
        ),
        (
            ["model.tied=true", "model.input.kind=adaptive", "model.input.cutoffs=[5,9]", "model.softmax.cutoffs=[5]"],
            "model.tied=true shares clusters, and model.input.cutoffs=[5,9] are not model.softmax.cutoffs=[5];"
            " use model.input.cutoffs=null or model.tied=false",
        ),
        (
            ["model.tied=true", "model.input.kind=adaptive", "model.input.div_value=2"],
            "model.tied=true shares clusters, and model.input.div_value=2 is not model.softmax.div_value=4;"
            " give both the same or use model.tied=false",
        ),
        (
            ["model.input.kind=adaptive", "model.input.cutoffs=[]"],
            "model.input.cutoffs=[] leaves adaptive input no tail; give some or use kind=full",
        ),
        (
            ["model.input.kind=adaptive", "model.input.cutoffs=[9,5]"],
            "model.input.cutoffs=[9, 5] must rise strictly",
        ),
        (
            ["optim.schedule.min_lr=20.5"],
            "optim.schedule.min_lr=20.5 is above optim.lr=20; use a smaller one",
        ),
        (["max_epochs=null"], "max_epochs=null and max_steps=null would never end; give one of them"),
    ],
)
def test_combinations_that_cannot_be_are_refused(overrides, message):
    with refused(message):
        load(Config, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["max_epochs=null", "max_steps=5"],
        ["max_epochs=3", "max_steps=5"],
        ["corpus.valid_fraction=0.5", "corpus.test_fraction=0.25"],
        ["corpus.valid=x", "corpus.test_fraction=0.25"],
        ["model.softmax.kind=full"],
        ["model.tied=true", "model.softmax.kind=full"],
        ["model.tied=true", "model.softmax.kind=full", "model.embedding_size=50", "model.recurrence.last_size=50"],
        ["model.tied=true", "model.softmax.div_value=1", "model.embedding_size=50", "model.projection_size=50"],
        ["corpus=datasets", "corpus.dataset=wikitext"],
    ],
)
def test_combinations_that_can_be_are_allowed(overrides):
    load(Config, overrides)


def test_a_vocabulary_that_is_given_is_whole_unless_it_is_typed_otherwise():
    def vocabulary(*overrides):
        found = load(Config, list(overrides)).corpus.vocabulary
        return found.size, found.min_count, found.path

    path, size, min_count = (f"corpus.vocabulary.{each}" for each in ("path=v", "size=5", "min_count=2"))
    assert vocabulary() == vocabulary("corpus.vocabulary.path=null") == (50000, 1, None)
    assert vocabulary(path) == (None, 1, "v")
    assert vocabulary(path, size) == vocabulary(size, path) == (5, 1, "v")
    assert vocabulary(path, min_count) == (None, 2, "v")
    assert vocabulary("experiment=lm1b_lstm2048") == (793471, 3, None)
    assert vocabulary("experiment=lm1b_lstm2048", path) == (None, 1, "v")
    assert vocabulary("experiment=demo", path) == (None, 1, "v")


def test_all_that_is_wrong_is_named_in_one_line():
    with refused("stream.num_lanes=0: it must be greater than or equal to 1; optim.lr=-1: it must be greater than 0"):
        load(Config, ["stream.num_lanes=0", "optim.lr=-1"])


# --- text is taken as it is typed

VERBATIM = [
    "a b",
    " a ",
    " ",
    "a=b",
    "=",
    "a,b",
    "~",
    "~/x",
    "{a,b}",
    "x[0-9].txt",
    "[0-9]",
    "(a)",
    "a(",
    "#x",
    "a#b",
    "a&b",
    "'",
    "a'b",
    "''",
    '"a"',
    "'a'",
    "\\",
    "a\\b",
    "a\\",
    "a\\\\",
    "a\\b\\",
    "\\'",
    "a\\'b",
    "\\\\'x",
    "'\\",
    "$",
    "${",
    "${x}",
    "a${oc.env:HOME}b",
    "\\${x}",
    "\\\\${x}",
    "???",
    "2024",
    "1e3",
    "0x10",
    "nan",
    "true",
    "NULL",
    "~null",
    "glob(*)",
    "a: b",
    "- a",
    "%20",
    "*",
    "a\tb",
    "a\nb",
    "ünï/数据",
    "s3://bucket/key?x=1&y=2",
]
TYPED = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
    | st.sampled_from(list("\\'\"${}[](),=~#&?: nul")),
    min_size=1,
    max_size=12,
).filter(lambda text: text != "null")


@pytest.mark.parametrize("value", VERBATIM)
def test_special_characters_reach_a_text_field(value):
    assert load(VerifyConfig, [f"data={value}"], name="verify").data == value


@settings(max_examples=60, deadline=None)
@given(TYPED)
@example("\\'")
@example("\\${a}")
def test_any_text_reaches_a_text_field(value):
    assert load(VerifyConfig, [f"data={value}"], name="verify").data == value


@settings(max_examples=25, deadline=None)
@given(TYPED.filter(lambda text: not (text.startswith("[") and text.endswith("]"))))
@example("a,b")
@example("x[0-9]")
def test_any_text_reaches_a_field_that_may_be_a_list(value):
    assert load(Config, [f"corpus.train={value}"]).corpus.train == (value,)


def test_several_texts_reach_their_own_fields():
    config = load(Config, ["data=a=b", "run=${c}", "corpus.vocabulary.path=d e", "tracking.project=2024"])
    assert (config.data, config.run, config.corpus.vocabulary.path) == ("a=b", "${c}", "d e")
    assert config.tracking.project == "2024"


def test_null_is_nothing():
    assert load(VerifyConfig, ["data=null"], name="verify").data is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[a]", ("a",)),
        ("[a,b]", ("a", "b")),
        ("[ a , b b,]", ("a", "b b")),
        ("[2024,1e3,null,true]", ("2024", "1e3", "null", "true")),
        ("[x[0-9].txt,~/y=z]", ("x[0-9].txt", "~/y=z")),
        ("[a'b,c\\]", ("a'b", "c\\")),
        ("[${a},???]", ("${a}", "???")),
    ],
)
def test_lists_of_text(value, expected):
    assert load(Config, [f"corpus.train={value}"]).corpus.train == expected


@pytest.mark.parametrize("value", ["[]", "[ ]", "[,]"])
def test_an_empty_list_of_paths_is_refused(value):
    with pytest.raises(ConfigError, match=r"^corpus\.train=\[\]: "):
        load(Config, [f"corpus.train={value}"])


def test_a_text_field_that_is_no_list_takes_brackets_as_they_are():
    assert load(Config, ["corpus.text_column=[a,b]"]).corpus.text_column == "[a,b]"


# --- the tree


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment):
    """With a place for the data where it leaves that open."""
    config = load(Config, [f"experiment={experiment}", "data=a", "run=b"])
    assert flat(config).keys() <= leaves(Config).keys()
    assert load(Config, [f"experiment={experiment}", "stream.num_lanes=17"]).stream.num_lanes == 17


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("name", ["plan", "submit"])
def test_plan_and_submit_read_what_train_reads(name, experiment):
    typed = [f"experiment={experiment}", "optim.lr=0.5", "cluster=local"]
    found, train = load(TREES[name], typed, name=name), load(Config, typed)
    assert {key: value for key, value in found if key in Config.model_fields} == dict(train)
    assert {*type(found).model_fields} - {*Config.model_fields} == {"plan" if name == "plan" else "via"}


@pytest.mark.parametrize(
    ("group", "choice"), [(group, each) for group, found in groups(SubmitConfig).items() for each in found]
)
def test_every_choice_of_every_group_composes(group, choice):
    typed = [f"{group}={choice}", *(["corpus.dataset=x"] if choice == "datasets" else [])]
    load(SubmitConfig, typed, name="submit")
    if group in groups(Config):
        load(Config, typed)


def test_every_file_of_conf_has_its_tree():
    assert sorted(TREES) == sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("name", TREES)
def test_every_key_is_described_in_a_line(name):
    found = dict(sections(load(TREES[name], [], name=name)))
    kinds = {f"{place}.{kind}.": section for place, rows in KINDS.items() for kind, section in rows.items()}
    for prefix, section in [*found.items(), *(kinds.items() if name == "submit" else ())]:
        assert re.match(r"[A-Z].{1,110}\.(\n|$)", str(section.__doc__))
        for key, field in section.model_fields.items():
            place = f"{prefix.removesuffix('.').rpartition('.')[0]}.{key}"  # of a kind's section: without the kind
            if not {f"{prefix}{key}.", f"{place}."} & found.keys() and place not in KINDS:
                assert re.fullmatch(r"[A-Z].{1,110}\.", str(field.description)), f"{prefix}{key}: {field.description}"


def test_sections_are_found_with_their_prefix():
    found = dict(sections(load(Config, [])))
    assert found[""] is Config
    assert found["corpus.vocabulary."].__name__ == "VocabularyConfig"
    assert found["model.recurrence."].__name__ == "LSTMConfig"
    there = {f"{prefix}{name}" for prefix, each in found.items() for name in each.model_fields}
    of_kinds = {
        f"{place}.{key}" for place, kinds in KINDS.items() for each in kinds.values() for key in each.model_fields
    }
    assert there >= leaves(Config).keys() - of_kinds


def test_groups_are_the_folders_of_conf():
    found = groups(SubmitConfig)
    assert list(found) == sorted(path.name for path in CONF.iterdir() if path.is_dir())
    assert found["optim"] == ["adagrad", "adam", "adamw", "sgd"]
    assert found["via"] == sorted(KINDS["via"])
    assert set(found) == {"cluster", "corpus", "experiment", "model", "optim", "via"}


@pytest.mark.parametrize("kind", KINDS["model.recurrence"])
def test_a_model_of_each_kind_is_chosen_by_its_name(kind):
    chosen, alone = load(Config, [f"model={kind}"]).model, load(Config, [f"model.recurrence.kind={kind}"]).model
    assert chosen.recurrence.kind == kind
    assert chosen == alone  # the rest is shared, until an experiment says otherwise


def test_a_tree_has_the_groups_that_fill_it():
    whole = {group: files for group, files in groups(SubmitConfig).items() if group != "via"}
    assert groups(Config) == groups(PlanConfig) == whole
    assert [groups(schema) for schema in (EvaluateConfig, VerifyConfig, RunConfig, ReportConfig)] == [{}] * 4


def test_a_group_is_chosen_whatever_the_order_of_overrides():
    config = load(Config, ["optim.lr=0.5", "optim=adam", "cluster=none"])
    assert (config.optim.name, config.optim.lr, config.cluster.kind) == ("adam", 0.5, "none")


@pytest.mark.parametrize("name", TREES)
def test_every_verb_has_its_defaults(name):
    assert flat(load(TREES[name], [], name=name)).keys() <= leaves(TREES[name]).keys()


def test_the_tree_is_frozen():
    config = load(Config, [f"{CUTOFFS}=[5]"])
    with pytest.raises(ValidationError, match="frozen"):
        config.data = "x"
    with pytest.raises(ValidationError, match="frozen"):
        config.model.softmax.kind = "full"
    assert isinstance(config.model.softmax.cutoffs, tuple)


def test_no_field_has_a_default():
    """Values live in conf/ alone."""

    def fields(schema):
        for name, field in schema.model_fields.items():
            yield name, field
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)

    kinds = [section for each in KINDS.values() for section in each.values()]
    for schema in (*TREES.values(), *kinds):
        assert [name for name, field in fields(schema) if not field.is_required()] == []


def test_a_tree_survives_its_json():
    config = load(Config, ["corpus.train=[a,b]", "optim.clip_norm=null"])
    assert validated(Config, config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datta": "x"}, "unknown key datta; did you mean data?"),
        ({"data": 5}, "data=5: it must be a valid string, or null"),
        ({"data": ...}, "data is not given"),
    ],
)
def test_a_tree_from_a_file_is_judged_alike(change, message):
    tree = {"data": "a"} | change
    with refused(message):
        validated(VerifyConfig, json.dumps({key: value for key, value in tree.items() if value is not ...}))


def test_an_unknown_key_within_a_section_is_named_in_full():
    tree = json.loads(load(Config, []).model_dump_json())
    tree["model"]["softmax"]["cutofs"] = []
    with refused("unknown key model.softmax.cutofs; did you mean model.softmax.cutoffs?"):
        validated(Config, json.dumps(tree))


def test_shown_values_can_be_typed_again():
    config = load(Config, ["data=a b", f"{CUTOFFS}=[2000,10000]", "optim.lr=0.5", "corpus.lowercase=true"])
    typed = shown(config)
    assert typed["data"] == "a b"
    assert typed["run"] == "null"
    assert typed[CUTOFFS] == "[2000,10000]"
    assert typed["corpus.lowercase"] == "true"


def test_the_output_is_as_wide_as_the_projection_or_the_cell():
    assert load(Config, []).model.recurrence.output_size == 200
    assert load(Config, ["model.recurrence.projection_size=30"]).model.recurrence.output_size == 30


# --- sections that come in kinds


def test_a_kind_that_is_typed_brings_its_own_values_in_place_of_an_experiments():
    def softmax(*overrides):
        return load(Config, list(overrides)).model.softmax.model_dump(mode="json")

    full, adaptive = {"kind": "full"}, {"kind": "adaptive", "cutoffs": None, "div_value": 4.0}
    demo = adaptive | {"cutoffs": [2000, 8000]}
    kind, div_value = "model.softmax.kind={}", "model.softmax.div_value=2"
    assert softmax() == adaptive
    assert softmax(kind.format("full")) == full
    assert softmax("experiment=ptb_small") == full
    assert softmax("experiment=ptb_small", kind.format("adaptive")) == adaptive
    assert softmax("experiment=ptb_small", div_value, kind.format("adaptive")) == adaptive | {"div_value": 2.0}
    assert softmax("experiment=demo") == softmax("experiment=demo", kind.format("adaptive")) == demo
    assert softmax("experiment=demo", kind.format("full")) == full
    assert softmax("experiment=demo", div_value) == demo | {"div_value": 2.0}
    assert load(Config, ["experiment=text8_grave"]).model.recurrence.projection_size is None  # the file of its kind


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.softmax.kind=ful"], f'model.softmax.kind="ful": it must be {SOFTMAXES}; did you mean full?'),
        (["model.softmax.kind=null"], f"model.softmax.kind=null: it must be {SOFTMAXES}"),
        (["model.softmax.kind=../full"], f'model.softmax.kind="../full": it must be {SOFTMAXES}; did you mean full?'),
        (
            ["model.softmax.kind=full", f"{CUTOFFS}=[5]"],
            f"{CUTOFFS} is no key of model.softmax.kind=full; leave it out or use model.softmax.kind=adaptive",
        ),
        (
            ["experiment=ptb_small", "model.softmax.div_value=2"],
            "model.softmax.div_value is no key of model.softmax.kind=full;"
            " leave it out or use model.softmax.kind=adaptive",
        ),
        (["model.softmax.cutofs=[5]"], "unknown key model.softmax.cutofs; did you mean model.softmax.cutoffs?"),
        (["model.recurrence=lstm"], "unknown key model.recurrence; did you mean model.recurrence.kind?"),
    ],
)
def test_a_key_belongs_to_its_kind(overrides, message):
    with refused(message):
        load(Config, overrides)


@pytest.mark.parametrize("kind", KINDS["via"])
def test_each_way_onto_a_cluster_has_its_own_keys(kind):
    config = load(SubmitConfig, [f"via={kind}", "via.python=/opt/a b"], name="submit")
    assert type(config.via) is KINDS["via"][kind]
    assert (config.via.kind, config.via.python) == (kind, "/opt/a b")
    assert load(SubmitConfig, [f"via.kind={kind}", "via.python=/opt/a b"], name="submit") == config
    assert validated(SubmitConfig, config.model_dump_json()) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["via=slrm"], "via=slrm is not one of kuberay, ray, sky, slurm; did you mean slurm?"),
        (["via=null"], "via=null is not one of kuberay, ray, sky, slurm"),
        (["via=ray", "via=slurm"], "via is given twice, as ray and as slurm; give it once"),
        (["via=ray", "via.nodes=2"], "via.nodes is no key of via.kind=ray; leave it out or use via.kind=slurm"),
        (["via=sky", "via.mount=/a"], "via.mount is no key of via.kind=sky; leave it out or use via.kind=kuberay"),
        (["via=slurm", "via.node=2"], "unknown key via.node; did you mean via.nodes?"),
        (["via=slurm", "via.nodes=0"], "via.nodes=0: it must be greater than or equal to 1"),
        (["via=slurm", "via.minutes=0"], "via.minutes=0: it must be greater than or equal to 1, or null"),
        (["via=kuberay", "via.backoff_limit=-1"], "via.backoff_limit=-1: it must be greater than or equal to 0"),
        (["via=sky", "via.spot=yes"], 'via.spot="yes": it must be a valid boolean'),
    ],
)
def test_a_way_that_cannot_be_is_refused(overrides, message):
    with refused(message):
        load(SubmitConfig, overrides, name="submit")


def test_text_of_a_way_is_taken_as_it_is_typed():
    slurm = load(SubmitConfig, ["via=slurm", "via.options=[--constraint=a100,--exclusive]"], name="submit").via
    assert slurm.options == ("--constraint=a100", "--exclusive")
    assert (
        load(SubmitConfig, ["via=ray", "via.address=http://${a}:8265"], name="submit").via.address == "http://${a}:8265"
    )


@pytest.mark.parametrize("key", ["words_per_second", "price_per_hour", "device_memory_gb"])
def test_what_a_plan_is_made_for_is_a_number_above_zero_or_nothing(key):
    assert load(PlanConfig, [f"plan.{key}=2"], name="plan").plan.model_dump()[key] == 2
    assert load(PlanConfig, [f"plan.{key}=null"], name="plan").plan.model_dump()[key] is None
    for value, needed in (("0", "greater than 0"), ("inf", "a finite number"), ("much", "a valid number")):
        with pytest.raises(ConfigError, match=f"^plan\\.{key}=[^ ]+: it must be {needed}, or null$"):
            load(PlanConfig, [f"plan.{key}={value}"], name="plan")


def test_plan_and_submit_keep_their_own_keys_to_themselves():
    for override, key in (
        ("plan.price_per_hour=2", "plan.price_per_hour"),
        ("via=ray", "via"),
        ("via.nodes=2", "via.nodes"),
    ):
        with pytest.raises(ConfigError, match=f"^unknown key {re.escape(key)}(;|$)"):
            load(Config, [override])
    with refused("unknown key via"):
        load(PlanConfig, ["via=ray"], name="plan")


def test_a_report_is_of_one_run_or_several():
    assert load(ReportConfig, ["runs=a b"], name="report").runs == ("a b",)
    assert load(ReportConfig, ["runs=[a,s3://b/c]", "out=x.html"], name="report").runs == ("a", "s3://b/c")
    assert load(ReportConfig, [], name="report").runs is None
    with pytest.raises(ConfigError, match=r"^runs=\[\]: "):
        load(ReportConfig, ["runs=[]"], name="report")


def test_a_key_may_be_typed_by_its_former_name():
    former = load(Config, ["model.hidden_size=30", "model.num_layers=3", "model.projection_size=20"])
    assert former == load(
        Config,
        [f"model.recurrence.{each}" for each in ("hidden_size=30", "num_layers=3")]
        + ["model.recurrence.projection_size=20"],
    )
    with refused("unknown key model.hidden_size"):
        load(VerifyConfig, ["model.hidden_size=3"], name="verify")


def test_composing_does_not_hang_on_the_working_folder(tmp_path, monkeypatch):
    here = load(Config, [])
    monkeypatch.chdir(tmp_path)
    assert load(Config, []) == here
    assert list(Path(tmp_path).iterdir()) == []  # and Hydra leaves no folder behind


def test_bytes_that_are_no_utf8_are_told_in_one_line():
    with pytest.raises(ConfigError, match=r"^argument 'data=caf\\udce9' is no valid UTF-8; name such a file by"):
        load(Config, ["data=caf\udce9"])


# --- extensions


def test_extensions_are_imported_before_the_rest_is_judged(tmp_path, monkeypatch):
    (tmp_path / "one_extension.py").write_text("")
    (tmp_path / "other_extension.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert load(Config, []).extensions == ()
    assert load(Config, ["extensions=one_extension"]).extensions == ("one_extension",)
    with refused("stream.bptt=0: it must be greater than or equal to 1"):
        load(Config, ["stream.bptt=0", "extensions=[one_extension,other_extension]"])
    assert {"one_extension", "other_extension"} <= {*sys.modules}


def test_a_process_that_gets_the_tree_imports_the_extensions(tmp_path, monkeypatch):
    (tmp_path / "sent_extension.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    config = load(Config, ["extensions=sent_extension", "optim.lr=0.1"])
    sent = pickle.dumps(config)
    del sys.modules["sent_extension"]
    assert pickle.loads(sent) == config
    assert "sent_extension" in sys.modules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'bad_extension'"),
        ("a = = 1", "SyntaxError: invalid syntax"),
        ("raise OSError('two\\nlines')", "OSError: two lines"),
    ],
)
def test_an_extension_that_cannot_be_imported_is_told_in_one_line(text, reason, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "bad_extension.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    message = re.escape(f"extensions=bad_extension: it cannot be imported ({reason}")
    with pytest.raises(ConfigError, match=f"^{message}.*\\); name a Python module that is installed, or put"):
        load(Config, ["extensions=bad_extension"])
