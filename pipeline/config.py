"""The configuration: one tree for all verbs.

In: overrides as typed (`experiment=wikitext2 optim.lr=0.5`). Out: a frozen, strictly typed tree. Refuses, before
anything runs and in one line: unknown keys (with the nearest known one), wrong types, values that cannot be,
impossible combinations. Hydra composes the folder conf/; the schema below judges what comes out. Values live in conf/
alone: no field has a default here.
"""

import difflib
import importlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
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


def _find_conf() -> Path:
    """The folder of configuration files: part of the package where that is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


CONF = _find_conf()

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
    """A part of the tree: strict, frozen, without room for unknown keys.

    The string below a field says what the key is for: `--help` prints it.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True)


class VocabularyConfig(Section):
    """Which words get an id of their own."""

    size: Annotated[int, Field(ge=3)] | None
    """The most words that get an id, <eos> and <unk> included; null: every word."""
    min_count: PositiveInt
    """A word seen less often in the training text becomes <unk>."""
    path: str | None
    """A vocabulary of your own, taken whole: a file with one word a line, or a vocabulary.arrow."""


class CorpusConfig(Section):
    """What text to read and what a word is."""

    source: Literal["files", "datasets"]
    """Where the text comes from: files, or a Hugging Face data set."""
    train: Paths | None
    """Training text: files, globs or folders; with `datasets` names of splits, or files of a packaged builder."""
    valid: Paths | None
    """Validation text, given as `train` is; null: none, or cut from `train` by `valid_fraction`."""
    test: Paths | None
    """Test text, given as `train` is; null: none, or cut from `train` by `test_fraction`."""
    dataset: str | None
    """With `datasets`: a name, a folder, or a packaged builder (json, csv, parquet, text, arrow)."""
    text_column: str
    """The column that holds the text, in JSON lines, parquet and data sets; `a.b` is column b within column a."""
    null_rows: Literal["refuse", "skip"]
    """What happens to a row whose text is null or missing: refuse the corpus, or skip the row and count it."""
    documents: Literal["files", "lines"]
    """What a document of plain text is: a whole file or one line; a row of a data set is always one."""
    valid_fraction: Share
    """Share of the training documents that becomes the validation split, chosen by each document's hash."""
    test_fraction: Share
    """Share of the training documents that becomes the test split, chosen in the same way."""
    words: Literal["whitespace", "words"]
    """How text is split: at white space, for text that is tokenised already, or into words and punctuation."""
    lowercase: bool
    """Whether to convert the text to lower case first."""
    eos: Literal["line", "document"]
    """What ends with an end-of-sequence token, <eos>: each line or each document."""
    vocabulary: VocabularyConfig
    unit_bytes: Annotated[int, Field(ge=1024)]
    """About how many bytes of a file one task reads."""

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

    num_lanes: PositiveInt
    """Rows of the global batch: each is a stretch of the corpus of its own, whatever the number of devices."""
    bptt: PositiveInt
    """Tokens of each lane in one step: how far gradients flow back in time."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    """Seed of the initial weights and of the dropout masks."""
    state: Literal["reset", "carry"]
    """The recurrent state at the start of an epoch: zero, or carried on from each lane's own end."""
    verify: Literal["digest", "size"]
    """What is checked of each token shard before the first step: its digest, or its size, which is faster."""


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

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses cutoffs beyond a vocabulary of so many words.

        Raises:
            ConfigError: names the first that does not fit.
        """
        cutoffs = self.cutoffs or ()
        if cutoffs and cutoffs[-1] >= vocab_size:
            fitting = [cutoff for cutoff in cutoffs if cutoff < vocab_size]
            mend = f"model.softmax.cutoffs={fitting}".replace(" ", "") if fitting else "model.softmax.kind=full"
            raise ConfigError(f"cutoff {cutoffs[-1]} is not below the vocabulary's {vocab_size} words; use {mend}")


class FullSoftmaxConfig(SoftmaxConfig):
    """Full softmax: adaptive softmax without tails."""

    cutoffs: ClassVar[tuple[int, ...]] = ()
    div_value: ClassVar[float] = 1.0


class ViaConfig(Section):
    """How a job gets onto a cluster: what every way has; each adds keys of its own."""

    kind: str
    """The cluster's tool that starts the job; it decides which other keys there are."""
    python: str | None
    """The nodes' interpreter that has this package, as a full path; null: the image's, else this command's own."""


class RayJobsConfig(ViaConfig):
    """Ray's Jobs API."""

    address: str | None
    """The dashboard, http://HOST:8265; null: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this machine's."""
    working_dir: str | None
    """A folder with the code, without data, that Ray copies to the nodes; null: `python` has the package."""


class SlurmConfig(ViaConfig):
    """Slurm."""

    nodes: PositiveInt
    """Machines of the job; the ranks, `cluster.num_workers`, are shared out evenly."""
    gpus_per_node: Count | None
    """GPUs of each machine; null: none is asked for."""
    cpus_per_rank: PositiveInt | None
    """Cores of each rank; null: what the cluster gives."""
    memory_gb: Positive | None
    """Memory of each machine, in GB; null: what the cluster gives."""
    partition: str | None
    """The queue; null: the cluster's default."""
    account: str | None
    """Who pays; null: the user's default."""
    qos: str | None
    """The quality of service; null: the user's default."""
    minutes: PositiveInt | None
    """The time limit of one start; null: the queue's. A run that is not done by then is saved and requeued."""
    signal_seconds: PositiveInt
    """How long before the time limit the run is asked to save and stop."""
    setup: str | None
    """A shell file on the nodes that is read first, as for modules; null: none."""
    image: str | None
    """A container image for the ranks, by srun's plugin pyxis; null: none."""
    logs: str | None
    """The folder of the job's logs, seen from the nodes; null: `logs` in the run folder."""
    options: Paths | None
    """Further options of sbatch, as [--constraint=a100,--exclusive]; null: none."""


class KubeRayConfig(ViaConfig):
    """KubeRay, on Kubernetes."""

    namespace: str
    """The namespace."""
    image: str | None
    """The container image with this package; it must be given."""
    ray_version: str
    """The version of Ray in the image."""
    gpus_per_worker: Count
    """GPUs of each worker's pod."""
    cpus_per_worker: PositiveInt
    """Cores of each worker's pod."""
    memory_gb: Positive
    """Memory of each pod, in GB."""
    volume_claim: str | None
    """A PersistentVolumeClaim that all pods mount, for data and runs; null: both lie in an object store."""
    mount: str
    """Where the volume is mounted; `data` and `run` lie below it."""
    secrets: Paths | None
    """Kubernetes Secrets whose keys become environment variables, for wandb and object stores; null: none."""
    token_secret: str | None
    """The Secret that holds Ray's token; null: KubeRay makes one."""
    backoff_limit: Count
    """How often KubeRay starts the job anew after a failure."""
    ttl_seconds: Count
    """How long the ended job's cluster stays."""


class SkyConfig(ViaConfig):
    """SkyPilot; its YAML is rendered, not submitted."""

    infra: str | None
    """Where, as aws/us-east-1 or k8s; null: where SkyPilot finds it cheapest."""
    accelerators: str | None
    """GPUs of each machine, as H100:8; null: none."""
    nodes: PositiveInt
    """Machines of the job; the ranks, `cluster.num_workers`, are shared out evenly."""
    spot: bool
    """Whether machines may be taken away, which costs less."""
    image: str | None
    """A container image with this package; null: `workdir` is installed."""
    workdir: str | None
    """A checkout that SkyPilot copies to the machines and installs; null: the image has the package."""
    disk_gb: PositiveInt | None
    """Disk of each machine, in GB; null: SkyPilot's default."""
    secrets: Paths | None
    """Names of secrets that SkyPilot passes on, as WANDB_API_KEY; their values are never written; null: none."""


# dotted key of a section that comes in kinds → kind → the section with that kind's keys
KINDS: dict[str, dict[str, type[Section]]] = {
    "model.recurrence": {"lstm": LSTMConfig},
    "model.softmax": {"adaptive": AdaptiveSoftmaxConfig, "full": FullSoftmaxConfig},
    "via": {"ray": RayJobsConfig, "slurm": SlurmConfig, "kuberay": KubeRayConfig, "sky": SkyConfig},
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
    """The learning rate during training."""

    kind: Literal["constant", "step", "plateau", "cosine"]
    """How the learning rate changes after the warm-up."""
    warmup_steps: Count
    """Steps in which the rate rises linearly from 0 to `optim.lr`."""
    hold_epochs: Count
    """With `step`: epochs at the full rate before it falls."""
    divide_by: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    """What the rate is divided by: with `step` at each later epoch, with `plateau` when patience is used up."""
    patience: PositiveInt
    """With `plateau`: validations in a row without a better one, after which the rate is divided."""
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """With `plateau` and `cosine`: the rate at which the fall ends."""


class OptimConfig(Section):
    """The optimizer."""

    name: Literal["sgd", "adagrad", "adam", "adamw"]
    """The optimizer."""
    lr: Positive
    """The highest learning rate; it applies to the mean nats per target."""
    momentum: Share
    """With `sgd`: the momentum."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Weight decay, as the optimizer defines it."""
    clip_norm: Positive | None
    """The largest norm of the global gradient: a longer one is scaled down; null: no clipping."""
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.schedule.min_lr > self.lr:
            raise ValueError(
                f"optim.schedule.min_lr={self.schedule.min_lr:g} is above optim.lr={self.lr:g}; use a smaller one"
            )
        return self


class CheckpointConfig(Section):
    """When to validate and to save, and which checkpoints to keep."""

    every_steps: PositiveInt
    """Steps between checkpoints."""
    every_minutes: Positive | None
    """Minutes between checkpoints, in addition to those by steps; null: by steps alone."""
    keep_last: PositiveInt
    """How many of the newest checkpoints are kept."""
    keep_best: Count
    """How many of the best checkpoints, by validation nats, are kept as well."""
    keep_every_steps: PositiveInt | None
    """Checkpoints whose step is a multiple of this are never removed; null: there is no such rule."""
    validate_every_steps: PositiveInt | None
    """Steps between validations; null: at the end of each epoch."""


class GuardConfig(Section):
    """What is watched during training: losses, gradient norms, checkpoints, and workers that hang."""

    on_bad_loss: Literal["stop", "skip", "ignore"]
    """A loss that is not finite or a spike: stop, skip its window from an earlier checkpoint, or ignore it."""
    spike_deviations: Positive | None
    """Standard deviations above the mean of earlier losses that make a spike; null: spikes are not judged."""
    spike_window_steps: Annotated[int, Field(ge=2)]
    """How many earlier losses a loss is compared with."""
    skip_steps: PositiveInt
    """With `skip`: windows to skip, the bad one and those just before it."""
    max_skips: PositiveInt
    """With `skip`: how often a run may skip before it stops."""
    hang_seconds: Positive | None
    """Seconds without a step after which a worker is taken to hang; null: no watch is kept."""


class LoggingConfig(Section):
    """How often training is recorded, and what the terminal shows."""

    every_steps: PositiveInt
    """Steps between records in metrics.jsonl."""
    progress: bool
    """Whether the terminal shows progress between validations."""


class TrackingConfig(Section):
    """The dashboard that a run reports to."""

    kind: Literal["wandb", "none"]
    """The dashboard: Weights & Biases, or none."""
    project: str | None
    """Its project; null: from WANDB_PROJECT or wandb's settings, else wordlanes."""
    mode: Literal["online", "offline"] | None
    """Whether to send records; null: from WANDB_MODE or wandb's settings, else online if a key is configured."""


class ClusterConfig(Section):
    """Where work is done, and by how many processes."""

    kind: Literal["none", "local", "ray"]
    """How work is started: processes of this machine or a launcher, Ray on this machine, or a running Ray cluster."""
    num_cpus: PositiveInt | None
    """To prepare with Ray: tasks at a time; null: one for each core."""
    num_workers: PositiveInt | None
    """Training processes, one for each device; null: 1, or as many as a launcher started."""
    min_workers: PositiveInt | None
    """With Ray, training goes on with as few workers as this, and grows again; null: with all or none."""
    cpus_per_worker: PositiveInt | None
    """Threads of each training process; null: the machine's cores, shared out evenly."""
    address: str | None
    """With `ray`: HOST:PORT of the running cluster; null: the one to which this machine belongs."""
    max_failures: Count
    """How often lost workers are replaced before the run is given up; machines taken with notice do not count."""
    resize_seconds: Positive
    """With Ray: seconds between looks for machines onto which training can grow."""
    grace_seconds: Positive
    """Seconds that workers have to save and end after a request to stop, before they are killed."""

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

    extensions: Extensions
    """Python modules of your own that add text formats, recurrent cells or output layers."""
    data: str | None
    """The folder of the prepared corpus."""
    run: str | None
    """The folder of the training run: its checkpoints, metrics and configuration."""
    init_from: str | None
    """Weights for a new run to begin with: the folder of another run (its best ones) or a checkpoint's file."""
    max_epochs: PositiveInt | None
    """Passes over the training text, at most; null: only max_steps counts."""
    max_steps: PositiveInt | None
    """Optimizer steps, at most; null: only max_epochs counts."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the model; with bf16, softmax and loss stay in fp32."""
    accelerator: Literal["auto", "cpu", "cuda"]
    """The device to train on; auto: CUDA where there is a GPU."""
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
        return validated, (type(self), self.model_dump_json())


class PlanSection(Section):
    """What a plan is made for."""

    words_per_second: Positive | None
    """Speed of the whole run; null: measured here, on one device, and multiplied by the number of workers."""
    price_per_hour: Positive | None
    """Price of one device for an hour, in whatever currency; null: no cost is planned."""
    device_memory_gb: Positive | None
    """Memory of a device, in GB; null: that of the GPU that is here, else nothing is refused for it."""


class PlanConfig(Config):
    """What `plan` reads."""

    plan: PlanSection


class SubmitConfig(Config):
    """What `submit` reads."""

    via: Annotated[SerializeAsAny[ViaConfig], _by_kind("via")]


class ReportConfig(Section):
    """What `report` reads."""

    runs: Paths | None
    """The folders of the runs, as [A,B]."""
    out: str | None
    """The HTML file; its pictures lie beside it; null: report.html in the folder of the first run, if it is local."""


class EvaluateConfig(Section):
    """What `evaluate` reads."""

    run: str | None
    """The folder of the training run."""
    data: str | None
    """Another prepared corpus with the same vocabulary; null: the corpus of the run."""
    split: str
    """The split to score: train, valid or test."""
    checkpoint: Annotated[Literal["best", "last"] | int, BeforeValidator(_best_last_or_a_step)]
    """Which checkpoint: best (by validation nats), last, or the step of one that is kept."""
    accelerator: Literal["auto", "cpu", "cuda"]
    """The device to score on; auto: CUDA where there is a GPU."""


class VerifyConfig(Section):
    """What `verify` reads."""

    data: str | None
    """The folder of the prepared corpus."""


class RunConfig(Section):
    """What `status`, `stop` and `logs` read."""

    run: str | None
    """The folder of the training run."""


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

    if issubclass(schema, Config):
        _import_typed(overrides)
    known = leaves(schema)
    kinds = [place for place in KINDS if f"{place}.kind" in known]
    texts: dict[str, str] = {}
    others: list[str] = []
    typed: dict[str, str] = {}
    for override in overrides:
        key, value = _checked(schema, override)
        if key in typed:
            raise ConfigError(f"{key} is given twice, as {typed[key]} and as {value}; give it once")
        typed[key] = value
        if str in _parts(known.get(key)):
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
    values: dict[str, object] = {
        key: _text(text, may_be_list=tuple in map(get_origin, _parts(known[key]))) for key, text in texts.items()
    }
    given = [key for key, text in values.items() if text is not None]
    values |= {other: value for key in given for other, value in IMPLIED.get(key, {}).items() if other not in typed}
    for place in kinds:
        section = _node(tree, place)
        _fill(section, place, kind=values.get(f"{place}.kind", section["kind"]), typed=typed)
    for dotted, found in values.items():
        place, _, last = dotted.rpartition(".")
        _node(tree, place)[last] = found
    return validated(schema, json.dumps(tree))


def validated(schema: type[Tree], tree_json: str) -> Tree:
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


def groups(schema: type[Section]) -> dict[str, list[str]]:
    """The groups of conf/ that fill a schema, and the choices in each; an experiment fills the whole."""
    names = {*schema.model_fields, *(("experiment",) if issubclass(schema, Config) else ())}
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name in names
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


def sections(tree: Section, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """The schema of a tree and those of the sections in it, each with what the dotted keys of its fields begin with."""
    yield prefix, type(tree)
    for name, value in tree:
        if isinstance(value, Section):
            yield from sections(value, f"{prefix}{name}.")


def choices(annotation: object) -> list[str]:
    """The words that a field takes; empty where it takes other values as well."""
    parts = _parts(annotation)
    return [] if int in parts else [part for part in parts if isinstance(part, str)]


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


def given(key: str, folder: str | None) -> str:
    """The folder that a key names.

    Raises:
        ConfigError: it names none.
    """
    if folder is None:
        raise ConfigError(f"{key}=null is not given; use {key}=FOLDER")
    return folder


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
    files = groups(schema)
    if RENAMED.get(key) in known:
        key = RENAMED[key]
    if key in files:
        if value not in files[key]:
            raise ConfigError(f"{key}={value} is not one of {', '.join(files[key])}{nearest(value, files[key])}")
    elif key not in known:
        raise ConfigError(f"unknown key {key}{nearest(key.lstrip('+~'), [*known, *files])}")
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
    near = nearest(str(error["input"]), choices(known.get(key)))
    return f"{key}={json.dumps(error['input'])}: {needed}{near}"
