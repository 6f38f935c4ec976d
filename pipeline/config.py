"""The configuration: one tree for all verbs.

In: overrides as typed (`experiment=wikitext2 optim.lr=0.5`). Out: a frozen, strictly typed tree. Refuses, before
anything runs and in one line: unknown keys (with the nearest known one), wrong types, values that cannot be,
impossible combinations. Hydra composes the folder conf/; the schema below judges what comes out. Values live in conf/
alone: no field has a default here.
"""

import difflib
import importlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from pipeline.errors import ConfigError
from pipeline.upgrades import RENAMED

CONF = Path(__file__).resolve().parents[1] / "conf"

# a key that is typed → other keys, which get these values then unless they are typed too, whatever conf/ says
IMPLIED: dict[str, dict[str, object]] = {
    "corpus.vocabulary.path": {"corpus.vocabulary.size": None, "corpus.vocabulary.min_count": 1},
}

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _one_is_a_list(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _best_last_or_a_step(value: object) -> object:
    if value in ("best", "last") or (type(value) is int and value > 0):
        return value
    near = nearest(str(value), ("best", "last"))
    raise ValueError(f"checkpoint={value}: it must be best, last or a step{near}")


def import_extensions(names: tuple[str, ...]) -> tuple[str, ...]:
    """Imports modules from outside the package, each of which adds rows to the tables of formats, cells and layers.

    Raises:
        ConfigError: one cannot be imported, whatever it raised.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(
                f"extensions={name}: it cannot be imported ({reason}); name a Python module that is installed,"
                " or put its folder into PYTHONPATH"
            ) from error
    return names


Paths = Annotated[tuple[str, ...], BeforeValidator(_one_is_a_list), Field(min_length=1)]
Extensions = Annotated[tuple[str, ...], BeforeValidator(_one_is_a_list), AfterValidator(import_extensions)]


class Section(BaseModel):
    """A part of the tree: strict, frozen, without room for unknown keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class VocabularyConfig(Section):
    """Which words get an id of their own."""

    size: Annotated[int, Field(ge=3)] | None  # the most words, with <eos> and <unk>; null: every word
    min_count: PositiveInt  # a word seen less often is <unk>
    path: str | None  # a given vocabulary, taken whole: one word a line, or a vocabulary.arrow


class CorpusConfig(Section):
    """What text to read and what a word is."""

    source: Literal["files", "datasets"]
    train: Paths | None  # files: paths, globs, folders; datasets: names of splits, or files of a packaged builder
    valid: Paths | None
    test: Paths | None
    dataset: str | None  # datasets: a name, a folder, or a packaged builder (json, csv, parquet, text, arrow)
    text_column: str  # jsonl, parquet and datasets; a dotted path leads into nested columns
    null_rows: Literal["refuse", "skip"]  # what becomes of a row whose text is null or missing
    documents: Literal["files", "lines"]  # what a document of plain text is; a row is always one
    valid_fraction: Share  # share of train's documents, drawn by the document's hash
    test_fraction: Share
    words: Literal["whitespace", "words"]
    lowercase: bool
    eos: Literal["line", "document"]  # what ends with <eos>
    vocabulary: VocabularyConfig
    unit_bytes: Annotated[int, Field(ge=1024)]  # a task reads about this much of a file

    @model_validator(mode="after")
    def _source_fits(self) -> Self:
        if self.source == "datasets" and self.dataset is None:
            raise ValueError("corpus.dataset=null names no data set; give corpus.dataset=NAME")
        for split in ("valid", "test"):
            if getattr(self, split) is not None and getattr(self, f"{split}_fraction") > 0:
                fraction = getattr(self, f"{split}_fraction")
                raise ValueError(
                    f"corpus.{split} is given and corpus.{split}_fraction={fraction:g} would cut it from train;"
                    f" use corpus.{split}_fraction=0"
                )
        if self.valid_fraction + self.test_fraction >= 1:
            total = self.valid_fraction + self.test_fraction
            raise ValueError(f"corpus.valid_fraction + corpus.test_fraction={total:g} leaves no train; keep it below 1")
        return self


class StreamConfig(Section):
    """How the token sequence becomes batches."""

    num_lanes: PositiveInt  # rows of the global batch, whatever the number of devices
    bptt: PositiveInt  # tokens of each lane in a step
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    state: Literal["reset", "carry"]  # at an epoch's start: zero, or each lane's own end
    verify: Literal["digest", "size"]  # what of each shard is checked before the first step


class RecurrenceConfig(Section):
    """The recurrence: what every kind of it has; each adds keys of its own."""

    kind: str
    """Which recurrent cell reads the words; it decides which other keys there are."""

    @property
    def output_size(self) -> int:
        """Width of the hidden vectors, which the output layer reads."""
        raise NotImplementedError


class LSTMConfig(RecurrenceConfig):
    """Stacked LSTM."""

    hidden_size: PositiveInt
    """Width of each layer's cell."""
    num_layers: PositiveInt
    """How many layers stand one above the other."""
    projection_size: PositiveInt | None
    """Width to which each layer's hidden vector is projected, below hidden_size; null: it is not projected."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.projection_size is not None and self.projection_size >= self.hidden_size:
            raise ValueError(
                f"model.recurrence.projection_size={self.projection_size} must be below"
                f" model.recurrence.hidden_size={self.hidden_size}; use a smaller one or null"
            )
        return self

    @property
    def output_size(self) -> int:
        """The projection's width, else the cell's."""
        return self.projection_size or self.hidden_size


class SoftmaxConfig(Section):
    """The output layer: what every kind of it has; each adds keys of its own."""

    kind: str
    """Which output layer gives the words their probabilities; it decides which other keys there are."""


class AdaptiveSoftmaxConfig(SoftmaxConfig):
    """Adaptive softmax."""

    cutoffs: tuple[PositiveInt, ...] | None
    """The first word of each tail cluster, by frequency rank; null: as fits the vocabulary's size."""
    div_value: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """By how much each tail cluster is narrower than the one before it."""

    @model_validator(mode="after")
    def _cutoffs_fit(self) -> Self:
        if self.cutoffs == ():
            raise ValueError("model.softmax.cutoffs=[] leaves adaptive softmax no tail; give some or use kind=full")
        if self.cutoffs is not None and list(self.cutoffs) != sorted(set(self.cutoffs)):
            raise ValueError(f"model.softmax.cutoffs={list(self.cutoffs)} must rise strictly")
        return self


class FullSoftmaxConfig(SoftmaxConfig):
    """Full softmax: adaptive softmax without tails."""

    cutoffs: ClassVar[tuple[int, ...]] = ()
    div_value: ClassVar[float] = 1.0


# dotted key of a section that comes in kinds → kind → the section with that kind's keys
KINDS: dict[str, dict[str, type[Section]]] = {
    "model.recurrence": {"lstm": LSTMConfig},
    "model.softmax": {"adaptive": AdaptiveSoftmaxConfig, "full": FullSoftmaxConfig},
}


def _by_kind(place: str) -> BeforeValidator:
    """Judges a section by the keys of its kind.

    Args:
        place: the section's dotted key in `KINDS`.
    """

    def judged(value: object) -> Section:
        if isinstance(value, Section):
            return value
        kinds = KINDS[place]
        tree = value if isinstance(value, dict) else {}
        kind = tree.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            listed = " or ".join(repr(each) for each in kinds)
            raise ValueError(f"{place}.kind={json.dumps(kind)}: it must be {listed}{nearest(str(kind), kinds)}")
        for key in tree:
            owners = [each for each, section in kinds.items() if key in section.model_fields]
            if owners and kind not in owners:
                raise ValueError(
                    f"{place}.{key} is no key of {place}.kind={kind}; leave it out or use {place}.kind={owners[0]}"
                )
        return kinds[kind].model_validate_json(json.dumps(tree))

    return BeforeValidator(judged)


class ModelConfig(Section):
    """Embedding, recurrence, output layer."""

    embedding_size: PositiveInt
    """Width of the word vectors."""
    dropout: Share
    """Share of the non-recurrent connections that a training step drops."""
    tied: bool
    """Whether the output layer reads the embedding's rows instead of weights of its own."""
    init_scale: Positive
    """The weights are drawn uniformly from [-init_scale, init_scale]."""
    recurrence: Annotated[SerializeAsAny[RecurrenceConfig], _by_kind("model.recurrence")]
    softmax: Annotated[SerializeAsAny[SoftmaxConfig], _by_kind("model.softmax")]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        output_size = self.recurrence.output_size
        if self.tied and self.embedding_size != output_size:
            raise ValueError(
                f"model.tied=true needs model.embedding_size={self.embedding_size} equal to the output's"
                f" {output_size}; use model.embedding_size={output_size} or model.tied=false"
            )
        if self.tied and isinstance(self.softmax, AdaptiveSoftmaxConfig) and self.softmax.div_value != 1:
            raise ValueError(
                f"model.tied=true shares rows of full width, model.softmax.div_value={self.softmax.div_value:g} narrows"
                " them; use model.softmax.div_value=1 or model.tied=false"
            )
        return self


class ScheduleConfig(Section):
    """The learning rate as a function of step, epoch and the validations so far."""

    kind: Literal["constant", "step", "plateau", "cosine"]
    warmup_steps: Count  # linear from 0 to lr, before the rest
    hold_epochs: Count  # step: epochs at the full rate
    divide_by: Annotated[
        float, Field(gt=1, allow_inf_nan=False)
    ]  # step: at each later epoch; plateau: when patience is used up
    patience: PositiveInt  # plateau: validations without a better one
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # plateau and cosine end there


class OptimConfig(Section):
    """How the weights move."""

    name: Literal["sgd", "adagrad", "adam", "adamw"]
    lr: Positive
    momentum: Share  # sgd
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    clip_norm: Positive | None  # of the global gradient
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.schedule.min_lr > self.lr:
            raise ValueError(
                f"optim.schedule.min_lr={self.schedule.min_lr:g} is above optim.lr={self.lr:g}; use a smaller one"
            )
        return self


class CheckpointConfig(Section):
    """When to validate and to save, and what to keep."""

    every_steps: PositiveInt
    every_minutes: Positive | None  # besides; null: by steps alone
    keep_last: PositiveInt
    keep_best: Count  # by validation nats
    keep_every_steps: PositiveInt | None  # each checkpoint whose step is a multiple of it; null: none for that reason
    validate_every_steps: PositiveInt | None  # null: at the end of each epoch


class GuardConfig(Section):
    """What is watched while a run goes on: losses, gradient norms, and at each checkpoint all that it would hold."""

    on_bad_loss: Literal["stop", "skip", "ignore"]  # skip: go back to before the update to blame, pass its window over
    spike_deviations: Positive | None  # a loss this far above the mean of those before it is bad; null: only not finite
    spike_window_steps: Annotated[int, Field(ge=2)]  # how many are before it
    skip_steps: PositiveInt  # windows passed over: the bad one, and those before it
    max_skips: PositiveInt  # how often a run passes windows over before it stops after all
    hang_seconds: Positive | None  # a rank without a step for so long hangs; null: nobody watches


class LoggingConfig(Section):
    """What the run folder and the terminal are told, and how often."""

    every_steps: PositiveInt
    progress: bool


class TrackingConfig(Section):
    """The dashboard; what is null is wandb's own to find, from its variables (WANDB_*) and settings files."""

    kind: Literal["wandb", "none"]
    project: str | None  # null: as wandb finds it, else wordlanes
    mode: Literal["online", "offline"] | None  # null: as wandb finds it, else online if a key is configured


class ClusterConfig(Section):
    """Which machines."""

    kind: Literal["none", "local", "ray"]
    num_cpus: PositiveInt | None  # prepare: tasks at a time; null: one for each core
    num_workers: PositiveInt | None  # train: processes, one for each device; null: 1, or what a launcher started
    min_workers: PositiveInt | None  # train: Ray goes on with as few as these; null: with all or none
    cpus_per_worker: PositiveInt | None  # train: threads of each; null: the machine's cores, shared out
    address: str | None  # kind=ray: of the running cluster; null: the one that this machine belongs to
    max_failures: Count  # train: worker groups lost before the run is given up; machines taken with notice do not count
    resize_seconds: Positive  # train: how often Ray looks for machines to grow onto
    grace_seconds: Positive  # train: from a wish to stop until a worker is killed

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        if self.kind == "none" and self.min_workers is not None:
            raise ValueError(
                f"cluster.min_workers={self.min_workers} needs Ray; use cluster=local, cluster=ray"
                " or cluster.min_workers=null"
            )
        if self.min_workers is not None and self.min_workers > (self.num_workers or 1):
            raise ValueError(
                f"cluster.min_workers={self.min_workers} is above cluster.num_workers={self.num_workers or 1};"
                " use a smaller one"
            )
        if self.kind != "ray" and self.address is not None:
            raise ValueError(f"cluster.address={self.address} is that of a running Ray; use it with cluster=ray")
        return self


class Config(Section):
    """The whole tree; every verb reads its part.

    A process that has it has imported its extensions.
    """

    extensions: Extensions  # modules of your own with formats, cells or layers; first, since they decide what is valid
    data: str | None  # the prepared corpus, a folder
    run: str | None  # the run folder
    init_from: str | None  # a run folder, its best weights, or a checkpoint's file: what a new run begins with
    max_epochs: PositiveInt | None
    max_steps: PositiveInt | None
    precision: Literal["fp32", "bf16"]
    accelerator: Literal["auto", "cpu", "cuda"]
    corpus: CorpusConfig
    stream: StreamConfig
    model: ModelConfig
    optim: OptimConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    logging: LoggingConfig
    tracking: TrackingConfig
    cluster: ClusterConfig

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("max_epochs=null and max_steps=null would never end; give one of them")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as JSON, so that the process that receives it imports the extensions too."""
        return judge, (type(self), self.model_dump_json())


class EvaluateConfig(Section):
    """What `evaluate` reads."""

    run: str | None
    data: str | None  # null: the corpus of the run
    split: str
    checkpoint: Annotated[Literal["best", "last"] | int, BeforeValidator(_best_last_or_a_step)]
    accelerator: Literal["auto", "cpu", "cuda"]


class VerifyConfig(Section):
    """What `verify` reads."""

    data: str | None


class StatusConfig(Section):
    """What `status` reads."""

    run: str | None


Tree = TypeVar("Tree", bound=Section)


def load(schema: type[Tree], overrides: Sequence[str], *, name: str = "config") -> Tree:
    """Composes `conf/<name>.yaml` with the overrides and judges the result.

    Args:
        schema: the tree's type.
        overrides: `key=value` as typed; `group=choice` picks a file of conf/. A value for a text field is taken
            verbatim, so paths need no quotes of Hydra's own; `[a,b]` is a list, `null` nothing.
        name: the file of conf/ to start from.

    Raises:
        ConfigError: an unknown key or choice, a wrong type, an impossible value or combination.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if schema is Config:
        _import_typed(overrides)
    known = leaves(schema)
    kinds = [place for place in KINDS if f"{place}.kind" in known]
    texts: dict[str, str] = {}
    others: list[str] = []
    typed: set[str] = set()
    for override in overrides:
        key, value = _checked(schema, override)
        typed.add(key)
        if _is_text(known.get(key)):
            texts[key] = value
        else:
            may_be_new = "++" if key.rpartition(".")[0] in kinds else ""  # the kind's values come after Hydra
            others.append(f"{may_be_new}{key}={value}")
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base=None):
            composed = compose(config_name=name, overrides=others)
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    # Hydra's grammar and OmegaConf's `${` and `???` never see a path
    values: dict[str, object] = {key: _text(text, may_be_list=_is_list(known[key])) for key, text in texts.items()}
    given = [key for key, text in values.items() if text is not None]
    values |= {other: value for key in given for other, value in IMPLIED.get(key, {}).items() if other not in typed}
    for place in kinds:
        section = _node(tree, place)
        _fill(section, place, kind=values.get(f"{place}.kind", section["kind"]), typed=typed)
    for dotted, found in values.items():
        place, _, last = dotted.rpartition(".")
        _node(tree, place)[last] = found
    return judge(schema, json.dumps(tree))


def judge(schema: type[Tree], tree_json: str) -> Tree:
    """The tree that a JSON text holds, or one `ConfigError` with all that is wrong with it."""
    try:
        return schema.model_validate_json(tree_json)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(dict.fromkeys(_complaint(schema, dict(each)) for each in error.errors()))
        ) from error


def _import_typed(overrides: Iterable[str]) -> None:
    """Imports the extensions that are typed, for the keys that they bring may be typed too."""
    for key, _, value in (override.partition("=") for override in overrides):
        if key == "extensions" and value:
            names = _text(value, may_be_list=True)
            import_extensions((names,) if isinstance(names, str) else tuple(names or ()))


def _node(tree: Any, place: str) -> dict[str, Any]:  # noqa: ANN401  (a tree as JSON holds it)
    """The section at a dotted key; at none, the tree."""
    for part in place.split(".") if place else ():
        tree = tree[part]
    found: dict[str, Any] = tree
    return found


def _fill(section: dict[str, Any], place: str, *, kind: object, typed: Collection[str]) -> None:
    """Gives a section the values that conf/ has for its kind, where it has none.

    Args:
        section: as Hydra composed it; is changed.
        place: its dotted key.
        kind: that it is to be of; if that is not what was composed, only what was typed stays of the section.
        typed: dotted keys.
    """
    from omegaconf import OmegaConf

    stay = {key: value for key, value in section.items() if kind == section["kind"] or f"{place}.{key}" in typed}
    file = CONF.joinpath(*place.split("."), f"{kind}.yaml")
    values = OmegaConf.to_container(OmegaConf.load(file)) if kind in KINDS[place] and file.exists() else {}
    section.clear()
    section.update(cast(dict[str, Any], values) | stay | {"kind": kind})


def groups() -> dict[str, list[str]]:
    """The groups of conf/ and the choices in each."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def leaves(schema: type[Section], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a schema with its annotation; of a section that comes in kinds, the keys of all of them."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if kinds := KINDS.get(prefix + name):
            for section in kinds.values():
                found |= leaves(section, f"{prefix}{name}.")
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            found |= leaves(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def flat(tree: Section) -> dict[str, object]:
    """Every dotted key of a tree with its value, as JSON holds it."""

    def walk(node: dict[str, Any], prefix: str) -> Iterable[tuple[str, object]]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(tree.model_dump(mode="json"), ""))


def shown(tree: Section) -> dict[str, str]:
    """Every dotted key of a tree with its value, as it is typed."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in flat(tree).items()
    }


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known name most like the word, or nothing if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _checked(schema: type[Section], override: str) -> tuple[str, str]:
    """The key and the value of an override, after its key and choice are known to exist."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument {override!r} is not of the form key=value")
    if any("\ud800" <= character <= "\udfff" for character in override):  # how Python holds bytes of another encoding
        raise ConfigError(f"argument {override!r} is no valid UTF-8; name such a file by its folder or a glob")
    known = leaves(schema)
    choices = groups() if schema is Config else {}
    if RENAMED.get(key) in known:
        key = RENAMED[key]
    if key in choices:
        if value not in choices[key]:
            raise ConfigError(f"{key}={value} is not one of {', '.join(choices[key])}{nearest(value, choices[key])}")
    elif key not in known:
        raise ConfigError(f"unknown key {key}{nearest(key.lstrip('+~'), [*known, *choices])}")
    elif not value:
        raise ConfigError(f"{key}= has no value; give one, or null")
    return key, value


def _text(value: str, *, may_be_list: bool) -> str | list[str] | None:
    """The value of a text field as typed: verbatim, but for `null` and, where a list may stand, `[a,b]`."""
    if value == "null":
        return None
    if may_be_list and value.startswith("[") and value.endswith("]"):
        return [item.strip() for item in value[1:-1].split(",") if item.strip()]
    return value


def _parts(annotation: object) -> tuple[object, ...]:
    return (annotation, *(part for argument in get_args(annotation) for part in _parts(argument)))


def _is_text(annotation: object) -> bool:
    return any(part is str for part in _parts(annotation))


def _is_list(annotation: object) -> bool:
    return any(get_origin(part) is tuple for part in _parts(annotation))


def _complaint(schema: type[Section], error: dict[str, Any]) -> str:
    """One finding of pydantic's in our form: key=value, what is needed."""
    path = [str(part) for part in error["loc"]]
    known = leaves(schema)
    while path and ".".join(path) not in known and any(key == ".".join(path[:-1]) for key in known):
        path.pop()  # an index of a list, or a member of a union
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(key, known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"{key} is not given"
    needed = message.replace("Input should be", "it must be")
    if NoneType in _parts(known.get(key)) and not isinstance(error["loc"][-1], int):  # an item of a list is never null
        needed += ", or null"
    near = nearest(str(error["input"]), [a for a in _parts(known.get(key)) if isinstance(a, str)])
    return f"{key}={json.dumps(error['input'])}: {needed}{near}"
