"""The trees: which sections and keys each verb reads."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline.config.judging import validated
from pipeline.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    CorpusConfig,
    DynamicConfig,
    Extensions,
    GuardConfig,
    LoggingConfig,
    ModelConfig,
    NeuralCacheConfig,
    OptimConfig,
    Paths,
    Positive,
    PositiveInt,
    PrepareConfig,
    Section,
    StreamConfig,
    TrackingConfig,
    ViaConfig,
    by_kind,
    nearest,
)


def _best_last_or_a_step(value: object) -> object:
    if value in ("best", "last") or (type(value) is int and value > 0):
        return value
    near = nearest(str(value), ("best", "last"))
    raise ValueError(f"checkpoint={value}: it must be best, last or a step{near}")


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
    prepare: PrepareConfig
    stream: StreamConfig
    model: Annotated[SerializeAsAny[ModelConfig], by_kind("model")]
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

    via: Annotated[SerializeAsAny[ViaConfig], by_kind("via")]


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
    cache_gb: Positive | None
    """Disk of this machine, in GB, for token shards of a remote corpus; null: as the run has it."""
    cache_folder: str | None
    """Where on this machine they are kept; null: as the run has it."""
    mix: Paths | None
    """Other runs whose probabilities are averaged with the run's, as [A,B]; null: none."""
    mix_weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None
    """A share for the run and for each of the others, which sum to 1; null: the ones that fit `mix_split` best."""
    mix_split: str
    """The split on which the shares are fitted, by EM; another than the one to score."""
    neural_cache: NeuralCacheConfig
    dynamic: DynamicConfig

    @model_validator(mode="after")
    def _mixture_fits(self) -> Self:
        weights = None if self.mix_weights is None else str(list(self.mix_weights)).replace(" ", "")
        num_runs = 1 + len(self.mix or ())
        if weights is not None and self.mix is None:
            raise ValueError(f"mix_weights={weights} are shares of several runs; use mix=[RUN,...] or mix_weights=null")
        if self.mix_weights is not None and len(self.mix_weights) != num_runs:
            raise ValueError(
                f"mix_weights={weights} has {len(self.mix_weights)} shares for {num_runs} runs; give one for run= and"
                " one for each of mix="
            )
        if self.mix_weights is not None and not math.isclose(sum(self.mix_weights), 1, abs_tol=1e-6):
            raise ValueError(f"mix_weights={weights} sum to {sum(self.mix_weights):g}; they must sum to 1")
        if self.mix is not None and weights is None and self.split == self.mix_split:
            raise ValueError(
                f"split={self.split} would be scored with shares that were fitted on it, mix_split={self.mix_split};"
                " use another mix_split, or give mix_weights"
            )
        return self


class ArpaConfig(Section):
    """What `arpa` reads."""

    run: str | None
    """The folder of the run of an n-gram model."""
    to: str | None
    """The file that is written, FILE.arpa."""
    data: str | None
    """Another prepared corpus with the same vocabulary, which has the words; null: the corpus of the run."""


def _put_together(value: object) -> object:
    """Items that a comma within brackets has parted, whole again: [a=[1, 2], b=3] → [a=[1,2], b=3]."""
    if not isinstance(value, list | str):
        return value
    whole: list[str] = []
    for item in [value] if isinstance(value, str) else map(str, value):
        if whole and whole[-1].count("[") > whole[-1].count("]"):
            whole[-1] += f",{item}"
        else:
            whole.append(item)
    return tuple(whole)


class CompareConfig(Section):
    """What `compare` reads."""

    experiments: Paths
    """Names of experiments, as [A,B], each trained as a run of its own; the table has them in this order."""
    overrides: Annotated[tuple[str, ...], BeforeValidator(_put_together)]
    """Keys of `train` for all of the runs, as [max_epochs=2,stream.seed=2]."""
    data: str | None
    """The folder of the prepared corpus."""
    runs: str | None
    """The folder with a run for each experiment, RUNS/EXPERIMENT; null: DATA-ladder, beside the corpus."""
    split: str
    """The split to score: train, valid or test."""
    plot: str | None
    """The picture, FILE.svg, beside which a PNG of the same name is written; null: none."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in self.experiments:
            if self.experiments.count(name) > 1:
                raise ValueError(f"experiments=[{','.join(self.experiments)}] names {name} twice; name each once")
        for each in self.overrides:
            if (key := each.partition("=")[0]) in ("data", "run", "experiment"):
                own = {"data": "data=FOLDER", "run": "runs=FOLDER", "experiment": "experiments=[A,B]"}[key]
                raise ValueError(f"overrides has {each}, which is each run's own; use {own}")
        return self


class HorizonConfig(Section):
    """What `horizon` reads."""

    run: Paths | None
    """The folder of the training run, or of several, as [A,B]."""
    data: str | None
    """Another prepared corpus with the same vocabulary; null: the corpus of each run."""
    split: str
    """The split that is read: train, valid or test."""
    checkpoint: Annotated[Literal["best", "last"] | int, BeforeValidator(_best_last_or_a_step)]
    """Which checkpoint: best (by validation nats), last, or the step of one that is kept."""
    distances: PositiveInt
    """How many steps back the gradient is followed, from the word just before the target."""
    contexts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """How many words a model is given before a target, as [1,10,100]."""
    targets: PositiveInt
    """How many words of the split are predicted, spread evenly over it."""
    accelerator: Literal["auto", "cpu", "cuda"]
    """The device to compute on; auto: CUDA where there is a GPU."""
    plot: str | None
    """The picture, FILE.svg, beside which a PNG of the same name is written; null: none."""

    @model_validator(mode="after")
    def _contexts_rise(self) -> Self:
        if list(self.contexts) != sorted(set(self.contexts)):
            raise ValueError(f"contexts={list(self.contexts)} must rise strictly")
        return self


class VerifyConfig(Section):
    """What `verify` reads."""

    data: str | None
    """The folder of the prepared corpus."""


class InspectConfig(Section):
    """What `inspect` reads."""

    data: str | None
    """The folder of the prepared corpus."""
    plot: str | None
    """The picture of ranks and counts, FILE.svg, beside which a PNG of the same name is written; null: none."""
    words: PositiveInt
    """How many of the most and of the least frequent words are shown."""
    windows: PositiveInt
    """How many of the first windows are shown that lane 0 reads, in the order of the text."""
    bptt: PositiveInt
    """Tokens of such a window, as stream.bptt of a training run."""
    min_words: PositiveInt
    """Held-out lines with fewer words, `<unk>` aside, are not looked for in train."""


class RunConfig(Section):
    """What `status`, `stop` and `logs` read."""

    run: str | None
    """The folder of the training run."""


class SynthesizeConfig(Section):
    """What `synthesize` reads."""

    to: str | None
    """The folder that gets the text."""
    num_words: PositiveInt
    """Words of the text, punctuation marks and full stops included; a billion have 5.6 GB."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    """The same seed gives the same text, on any machine and by any number of tasks."""
    cluster: ClusterConfig
