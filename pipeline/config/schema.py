"""The sections of the configuration: every key with its type, what it is for, and what it refuses.

A section that comes in kinds has its row in `KINDS`. Values live in conf/ alone: no field has a default here.
"""

import difflib
import importlib
import json
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    model_validator,
)

from pipeline.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Exponent = Annotated[float, Field(ge=0, le=1)]
RANDOM_BPTT = 10  # the least about which lengths are drawn: its half is the shortest of them
MOST_ORDER = 20  # of n-grams


def _one_is_a_list(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


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
Tags = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], BeforeValidator(_one_is_a_list)
]  # as long as W&B takes them
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
    shard_tokens: PositiveInt | None
    """Small files share a token shard until it has so many tokens; null: a shard for each part of a file."""

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


class PrepareConfig(Section):
    """How a corpus is prepared: what leaves no trace in it."""

    keep_ids: bool
    """Whether the text's words stay in the corpus folder as numbers, so that another vocabulary reads no text again."""


class StreamConfig(Section):
    """How the token sequence becomes batches."""

    num_lanes: PositiveInt
    """Rows of the global batch: each is a stretch of the corpus of its own, whatever the number of devices."""
    bptt: PositiveInt
    """Tokens of each lane in one step: how far gradients flow back in time."""
    random_bptt: bool
    """Whether steps differ in length, most about `bptt`, 5% about half of it; the learning rate follows."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    """Seed of the initial weights, of the dropout masks, of the order of blocks and of the steps' lengths."""
    state: Literal["reset", "carry"]
    """The recurrent state at the start of an epoch: zero, or carried on from each lane's own end."""
    verify: Literal["digest", "size"]
    """What is checked of each token shard before the first step: its digest, or its size, which is faster."""
    order: Literal["sequential", "blocks"]
    """The order of the text in an epoch: as it is, or blocks of it in an order drawn anew for each epoch."""
    block_tokens: PositiveInt
    """With `blocks`: tokens of a block, within which the text stays as it is."""
    cache_gb: Positive
    """Disk of this machine, in GB, for shards of a remote corpus; with `blocks` it should hold the corpus."""
    cache_folder: str | None
    """Where on this machine they are kept; null: a folder of wordlanes in the user's cache folder."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.random_bptt and self.bptt < RANDOM_BPTT:
            raise ValueError(
                f"stream.random_bptt=true draws lengths of 5 and more about stream.bptt={self.bptt} and half of it; use"
                f" stream.bptt={RANDOM_BPTT} or more, or stream.random_bptt=false"
            )
        return self

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.order == "blocks" and self.block_tokens < self.bptt:
            raise ValueError(
                f"stream.block_tokens={self.block_tokens} is below stream.bptt={self.bptt}, so no window would hold"
                f" text as it stands; use stream.block_tokens={self.bptt} or more, or stream.order=sequential"
            )
        return self


class RecurrenceConfig(Section):
    """The recurrence: what every kind of it has; each adds keys of its own."""

    layered: ClassVar[bool] = False  # whether `model.regularization` says what is dropped below each of its layers

    kind: str
    """Which recurrent cell reads the words; it decides which other keys there are."""

    @property
    def output_size(self) -> int:
        """Width of the hidden vectors, which the output layer reads."""
        raise NotImplementedError


class LSTMConfig(RecurrenceConfig):
    """Stacked LSTM."""

    layered: ClassVar[bool] = True

    hidden_size: PositiveInt
    """Width of each layer's cell."""
    num_layers: PositiveInt
    """How many layers stand one above the other."""
    projection_size: PositiveInt | None
    """Width to which each layer's hidden vector is projected, below hidden_size; null: it is not projected."""
    last_size: PositiveInt | None
    """Width of the last layer's cell, as tied weights may need; null: hidden_size."""
    weight_dropout: Share
    """Share of each layer's recurrent weights that a training step drops, the same for all words of the step."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.projection_size is not None and self.projection_size >= self.hidden_size:
            raise ValueError(
                f"model.recurrence.projection_size={self.projection_size} must be below"
                f" model.recurrence.hidden_size={self.hidden_size}; use a smaller one or null"
            )
        if self.last_size is not None and self.projection_size is not None:
            raise ValueError(
                f"model.recurrence.last_size={self.last_size} and"
                f" model.recurrence.projection_size={self.projection_size} both give the output's width;"
                " set one of them to null"
            )
        if self.last_size is not None and self.num_layers == 1:
            raise ValueError(
                f"model.recurrence.last_size={self.last_size} needs a layer below the last; use null and"
                f" model.recurrence.hidden_size={self.last_size}, or model.recurrence.num_layers=2"
            )
        return self

    @property
    def output_size(self) -> int:
        """The projection's width, else the last cell's."""
        return self.projection_size or self.last_size or self.hidden_size


class InputConfig(Section):
    """The input layer: what every kind of it has; each adds keys of its own."""

    kind: str
    """How words become the recurrence's input; it decides which other keys there are."""


class FullInputConfig(InputConfig):
    """A vector of full width for each word."""


class AdaptiveInputConfig(InputConfig):
    """Adaptive input: rare words have narrower vectors."""

    cutoffs: tuple[PositiveInt, ...] | None
    """The first word of each cluster of rarer words; null: as an adaptive softmax has them, else as fitted."""
    div_value: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """By how much the vectors of each cluster are narrower than those of the one before it."""

    @model_validator(mode="after")
    def _cutoffs_fit(self) -> Self:
        _check_rising(self.cutoffs, "model.input")
        return self

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses cutoffs beyond a vocabulary of so many words.

        Raises:
            ConfigError: names the first that does not fit.
        """
        _check_vocabulary(self.cutoffs, vocab_size, "model.input")


def _check_rising(cutoffs: tuple[int, ...] | None, place: str) -> None:
    """Refuses cutoffs that leave no tail or do not rise."""
    if cutoffs == ():
        what = place.removeprefix("model.")
        raise ValueError(f"{place}.cutoffs=[] leaves adaptive {what} no tail; give some or use kind=full")
    if cutoffs is not None and list(cutoffs) != sorted(set(cutoffs)):
        raise ValueError(f"{place}.cutoffs={list(cutoffs)} must rise strictly")


def _check_vocabulary(cutoffs: tuple[int, ...] | None, vocab_size: int, place: str) -> None:
    """Refuses cutoffs beyond a vocabulary of so many words."""
    if cutoffs and cutoffs[-1] >= vocab_size:
        fitting = [cutoff for cutoff in cutoffs if cutoff < vocab_size]
        mend = f"{place}.cutoffs={fitting}".replace(" ", "") if fitting else f"{place}.kind=full"
        raise ConfigError(f"cutoff {cutoffs[-1]} is not below the vocabulary's {vocab_size} words; use {mend}")


class StackedConfig(RecurrenceConfig):
    """Layers of one width, one above the other."""

    layered: ClassVar[bool] = True

    hidden_size: PositiveInt
    """Width of each layer."""
    num_layers: PositiveInt
    """How many layers stand one above the other."""

    @property
    def output_size(self) -> int:
        """The layers' width."""
        return self.hidden_size


class ElmanConfig(StackedConfig):
    """Stacked Elman network."""


class GRUConfig(StackedConfig):
    """Stacked GRU."""


class MinLSTMConfig(StackedConfig):
    """Stacked minLSTM."""


class WindowConfig(RecurrenceConfig):
    """Feed-forward network over the last words."""

    context_size: PositiveInt
    """How many words before the target are read."""
    hidden_size: PositiveInt
    """Width of the hidden layer."""
    direct: bool
    """Whether the words also reach the output by a linear map, past the hidden layer."""

    @property
    def output_size(self) -> int:
        """The hidden layer's width."""
        return self.hidden_size


class TransformerConfig(StackedConfig):
    """Causal transformer over the last words."""

    layered: ClassVar[bool] = False

    num_heads: PositiveInt
    """How many heads of attention share a layer's width."""
    feed_forward_size: PositiveInt
    """Width of the hidden layer of each layer's feed-forward network."""
    memory_size: PositiveInt
    """How many tokens before its own a layer attends to, in earlier windows too."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            fitting = max(heads for heads in range(1, self.num_heads) if self.hidden_size % heads == 0)
            raise ValueError(
                f"model.recurrence.num_heads={self.num_heads} does not divide"
                f" model.recurrence.hidden_size={self.hidden_size}; use model.recurrence.num_heads={fitting}"
            )
        return self


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
        _check_rising(self.cutoffs, "model.softmax")
        return self

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses cutoffs beyond a vocabulary of so many words.

        Raises:
            ConfigError: names the first that does not fit.
        """
        _check_vocabulary(self.cutoffs, vocab_size, "model.softmax")


class FullSoftmaxConfig(SoftmaxConfig):
    """Full softmax: adaptive softmax without tails."""

    cutoffs: ClassVar[tuple[int, ...]] = ()
    div_value: ClassVar[float] = 1.0


class SampledSoftmaxConfig(FullSoftmaxConfig):
    """Full softmax, trained by sampled softmax."""

    num_samples: PositiveInt
    """How many words a step draws for all its targets, log-uniformly over the ranks; copies count once."""


class NCEConfig(FullSoftmaxConfig):
    """Full softmax, trained by noise-contrastive estimation."""

    num_samples: PositiveInt
    """How many words a step draws as noise, for all its targets."""
    alpha: Exponent
    """A word is drawn in proportion to its training count to the power of this."""


class BlackOutConfig(FullSoftmaxConfig):
    """Full softmax, trained by BlackOut."""

    num_samples: PositiveInt
    """How many words a step draws, for all its targets."""
    alpha: Exponent
    """A word is drawn in proportion to its training count to the power of this."""


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
    logs: str | None
    """The folder of the job's logs, seen from the nodes; null: `logs` in the run folder."""
    options: Paths | None
    """Further options of sbatch, as [--constraint=a100,--exclusive]; null: none."""


class KubeRayConfig(ViaConfig):
    """KubeRay, on Kubernetes."""

    context: str | None
    """The cluster, by its name in kubectl's configuration; null: the current one."""
    namespace: str
    """The namespace."""
    image: str | None
    """The container image with this package, with a tag or a digest; it must be given."""
    ray_version: str
    """The version of Ray in the image."""
    gpus_per_pod: Count
    """GPUs of each worker's pod, each for one rank of training; 0: one rank a pod, on the CPU."""
    cpus_per_pod: PositiveInt
    """Cores of each worker's pod."""
    memory_gb: Positive
    """Memory of each worker's pod, in GiB."""
    head_memory_gb: Positive
    """Memory of the pod of Ray's head, which also runs the command, in GiB."""
    volume_claim: str | None
    """A PersistentVolumeClaim that all pods mount, for data and runs; null: both lie in an object store."""
    mount: str
    """Where the volume is mounted, in the pods and here; `data` and `run` lie below it."""
    user_id: PositiveInt
    """The number of the user and group that the pods run as, and that own what they write to the volume."""
    secrets: Paths | None
    """Kubernetes Secrets whose keys become environment variables, for wandb and object stores; null: none."""
    token_secret: str | None
    """The Secret that holds Ray's token, under auth_token; null: KubeRay makes one."""
    backoff_limit: Count
    """How often KubeRay starts the job anew, on a new cluster, after a failure."""
    ttl_seconds: Count
    """How long the ended job's cluster stays."""


class SkyConfig(ViaConfig):
    """SkyPilot; its YAML is rendered, not submitted."""

    infra: str | None
    """Where, as aws/us-east-1 or k8s; null: where SkyPilot finds it cheapest."""
    accelerators: str | None
    """GPUs of each machine, as H100:8, each for one rank; null: none, and the ranks are shared out evenly."""
    nodes: PositiveInt
    """Machines of the job."""
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
    "model": {},  # its kinds stand below
    "model.input": {"full": FullInputConfig, "adaptive": AdaptiveInputConfig},
    "model.recurrence": {
        "lstm": LSTMConfig,
        "gru": GRUConfig,
        "elman": ElmanConfig,
        "minlstm": MinLSTMConfig,
        "window": WindowConfig,
        "transformer": TransformerConfig,
    },
    "model.softmax": {
        "adaptive": AdaptiveSoftmaxConfig,
        "full": FullSoftmaxConfig,
        "sampled": SampledSoftmaxConfig,
        "nce": NCEConfig,
        "blackout": BlackOutConfig,
    },
    "via": {"ray": RayJobsConfig, "slurm": SlurmConfig, "kuberay": KubeRayConfig, "sky": SkyConfig},
}


def by_kind(place: str) -> BeforeValidator:
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
            near = nearest(kind, kinds) if isinstance(kind, str) else ""
            raise ValueError(f"{place}.kind={json.dumps(kind)}: it must be {listed}{near}")
        foreign = {
            f"{place}.{key}": owners[0]
            for key in tree
            if (owners := [each for each, section in kinds.items() if key in section.model_fields])
            and kind not in owners
        }
        if foreign:
            keys, (owner, *_) = [*foreign], foreign.values()
            are, them = ("is no key", "it") if len(keys) == 1 else ("are no keys", "them")
            raise ValueError(
                f"{', '.join(keys)} {are} of {place}.kind={kind}; leave {them} out or use {place}.kind={owner}"
            )
        return kinds[kind].model_validate_json(json.dumps(tree))

    return BeforeValidator(judged)


class RegularizationConfig(Section):
    """What is dropped where, beside model.dropout, and what is added to the loss that a step minimizes."""

    locked: bool
    """Whether a lane drops the same units at all time steps of a window, instead of others at each."""
    input_dropout: Share | None
    """Share of the word vectors' units that is dropped; null: model.dropout."""
    layer_dropout: Share | None
    """Share of each layer's units, the last one's aside, that is dropped; null: model.dropout."""
    output_dropout: Share | None
    """Share of the last layer's units that is dropped; null: model.dropout."""
    embedding_dropout: Share
    """Share of the vocabulary's words whose vectors a step drops, wherever these words stand in it."""
    activation: NotNegative
    """Weight in the loss of the mean square of the last layer's hidden units, after dropout; 0: none."""
    temporal: NotNegative
    """Weight in the loss of the mean square of their change from word to word, before dropout; 0: none."""


class ModelConfig(Section):
    """The language model: what every kind of it has; each adds keys of its own."""

    kind: str
    """What predicts the next word; it decides which other keys there are."""


class RecurrentConfig(ModelConfig):
    """Input layer, recurrence, output layer."""

    embedding_size: PositiveInt
    """Width of the word vectors."""
    dropout: Share
    """Share of the non-recurrent connections that a training step drops."""
    tied: bool
    """Whether the output layer reads the input layer's rows, and projections, instead of weights of its own."""
    init_scale: Positive
    """The weights are drawn uniformly from [-init_scale, init_scale]."""
    input: Annotated[SerializeAsAny[InputConfig], by_kind("model.input")]
    recurrence_init_scale: Positive | None
    """The same for the weights of the recurrence; null: init_scale."""
    regularization: RegularizationConfig
    recurrence: Annotated[SerializeAsAny[RecurrenceConfig], by_kind("model.recurrence")]
    softmax: Annotated[SerializeAsAny[SoftmaxConfig], by_kind("model.softmax")]

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        output_size = self.recurrence.output_size
        if self.tied and self.embedding_size != output_size:
            raise ValueError(
                f"model.tied=true needs model.embedding_size={self.embedding_size} equal to the output's"
                f" {output_size}; use model.embedding_size={output_size} or model.tied=false"
            )
        if self.tied and isinstance(self.input, AdaptiveInputConfig):
            self._clusters_fit(self.input)
        elif self.tied and isinstance(self.softmax, AdaptiveSoftmaxConfig) and self.softmax.div_value != 1:
            raise ValueError(
                f"model.tied=true shares rows of full width, model.softmax.div_value={self.softmax.div_value:g} narrows"
                " them; use model.softmax.div_value=1, model.input.kind=adaptive or model.tied=false"
            )
        if not self.recurrence.layered:
            plain = {"locked": False, "input_dropout": None, "layer_dropout": None}
            for key, value in plain.items():
                if (found := getattr(self.regularization, key)) != value:
                    raise ValueError(
                        f"model.regularization.{key}={json.dumps(found)} is not for"
                        f" model.recurrence.kind={self.recurrence.kind}; use {json.dumps(value)}"
                    )
        return self

    def _clusters_fit(self, input: AdaptiveInputConfig) -> None:
        """Refuses to tie clusters of words that are not the same."""
        if not isinstance(self.softmax, AdaptiveSoftmaxConfig):
            raise ValueError(
                f"model.tied=true shares an adaptive input's clusters with an adaptive softmax alone, not with"
                f" model.softmax.kind={self.softmax.kind}; use model.softmax.kind=adaptive, model.input.kind=full or"
                " model.tied=false"
            )
        if input.cutoffs not in (None, self.softmax.cutoffs):
            raise ValueError(
                f"model.tied=true shares clusters, and model.input.cutoffs={_listed(input.cutoffs)} are not"
                f" model.softmax.cutoffs={_listed(self.softmax.cutoffs)}; use model.input.cutoffs=null or"
                " model.tied=false"
            )
        if input.div_value != self.softmax.div_value:
            raise ValueError(
                f"model.tied=true shares clusters, and model.input.div_value={input.div_value:g} is not"
                f" model.softmax.div_value={self.softmax.div_value:g}; give both the same or use model.tied=false"
            )


def _listed(cutoffs: tuple[int, ...] | None) -> str:
    return json.dumps(cutoffs, separators=(",", ":"))


class NgramConfig(ModelConfig):
    """N-grams, smoothed by interpolated modified Kneser-Ney."""

    order: Annotated[int, Field(ge=1, le=MOST_ORDER)]
    """Words of the longest n-grams: the last one is predicted from those before it."""
    zeroton: bool
    """Whether a word that never occurs has a share of the probability, beside a literal <unk>, as lmplz has it."""
    resets: Literal["line", "none"]
    """Where histories end: at the begin of each line (or document, if those end with <eos>), or nowhere."""
    arpa: str | None
    """An ARPA file to take the probabilities from; null: they are estimated from the training text."""


KINDS["model"] |= {"recurrent": RecurrentConfig, "ngram": NgramConfig}


def recurrent(model: ModelConfig) -> RecurrentConfig:
    """The section of a model that is trained in steps.

    Raises:
        ConfigError: it is of another kind.
    """
    if isinstance(model, RecurrentConfig):
        return model
    raise ConfigError(
        f"model.kind={model.kind} is counted in one pass, which `python -m jobs train` does at once: it has no steps,"
        " lanes or devices; leave it to train, or use model.kind=recurrent"
    )


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
    averaging: Literal["none", "nonmonotone", "start"]
    """From when on the mean of the weights is what is evaluated: never, when validations get worse, at once."""
    averaging_patience: PositiveInt
    """With `nonmonotone`: a validation is compared with the best before so many of the latest."""
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.averaging != "none" and self.schedule.kind != "constant":
            raise ValueError(
                f"optim.averaging={self.averaging} needs a constant rate, and optim.schedule.kind={self.schedule.kind}"
                " changes it; use optim.schedule.kind=constant or optim.averaging=none"
            )
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
    group: Annotated[str, Field(min_length=1, max_length=128)] | None
    """Runs that it shows together; null: from WANDB_RUN_GROUP or wandb's settings, else the corpus folder's name."""
    tags: Tags
    """Words by which the run is found there."""
    prometheus_folder: str | None
    """A local folder, that of node-exporter's textfile collector, which gets the run's numbers; null: none does."""

    @model_validator(mode="after")
    def _folder_is_local(self) -> Self:
        if self.prometheus_folder is not None and "://" in self.prometheus_folder:
            raise ValueError(
                f"tracking.prometheus_folder={self.prometheus_folder} must be a folder of this machine, from which"
                " node-exporter reads; use one, or null"
            )
        return self


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


class NeuralCacheConfig(Section):
    """Words that were read lately gain probability."""

    size: PositiveInt | None
    """How many of the last words it holds; null: there is no cache."""
    weight: Share
    """Its share of the probability."""
    sharpness: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """By how much it prefers words with hidden vectors like the one at hand; 0: all that it holds count alike."""


class DynamicConfig(Section):
    """Weights that learn from what they have scored."""

    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    """Learning rate; null: the weights stay as they are."""
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """How far each update pulls the weights back to the trained ones."""
    epsilon: Positive
    """Added to the root mean square of each weight's gradient, by which its rate is divided."""
    segment: PositiveInt
    """Words that are scored between two updates, and time steps of a training window."""
    num_lanes: PositiveInt
    """Lanes of the training windows over which gradients are squared and averaged."""
    num_windows: PositiveInt
    """How many of these windows, from the first one on, if the training text has as many."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the known name most like the word, or nothing if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
