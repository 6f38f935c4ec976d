"""The Python interface: what `pipeline` offers by name.

In: a configuration, or the folder of a run. Out: a prepared corpus, a run, an evaluation, a model. Refuses what the
command line refuses, with the same errors (`pipeline.errors`). Each function imports what it needs when it is called.
"""

from typing import TYPE_CHECKING, Literal

from pipeline import storage
from pipeline.config import Config, EvaluateConfig, NgramConfig, given, load
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.corpus.manifest import Manifest
    from pipeline.corpus.phases import Progress
    from pipeline.corpus.units import Source
    from pipeline.evaluation import Evaluation
    from pipeline.runner import Conclusion
    from pipeline.training.restore import TrainedModel


def load_config(*overrides: str) -> Config:
    """The configuration of `prepare` and `train`.

    Args:
        overrides: `key=value` and `group=choice`, as on the command line; everything else has its value from conf/.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or a combination that cannot be.
    """
    return load(Config, overrides)


def prepare(config: Config, *, progress: "Progress | None" = None) -> "Manifest":
    """Makes the corpus folder `config.data` from the text that `config.corpus` names; does only what is not there yet.

    Args:
        config: `data`, `corpus` and `cluster` are read.
        progress: is told of phases and tasks.

    Returns:
        what the folder holds: its splits with their shards and counts, and the vocabulary's size.

    Raises:
        ConfigError: `data` is missing, or the folder is not one to prepare in.
        CorpusError: the text is missing, empty or damaged.
        ClusterError: a task's worker died again and again.
    """
    from pipeline.cluster.tasks import task_runner
    from pipeline.corpus.prepare import prepare as prepare_corpus

    data, sources = check_preparation(config)
    with task_runner(config.cluster) as run_tasks:
        return prepare_corpus(
            config.corpus,
            data,
            run_tasks=run_tasks,
            keep_ids=config.prepare.keep_ids,
            progress=progress,
            extensions=config.extensions,
            sources=sources,
        )


def check_preparation(config: Config) -> "tuple[str, list[Source]]":
    """The corpus folder and what is to be read, if all that can be known before anything is started allows it.

    Raises:
        ConfigError: `data` is missing, or the folder is not one to prepare in.
        CorpusError: the text is missing or empty.
    """
    from pipeline.corpus.prepare import check_inputs
    from pipeline.run.records import METRICS_NAME

    data = given("data", config.data)
    if storage.exists(storage.join(data, METRICS_NAME)):
        raise ConfigError(f"data={data} is a run folder, as it holds {METRICS_NAME}; use another data=FOLDER")
    return data, check_inputs(config.corpus, data)


def train(config: Config) -> "Conclusion":
    """Trains to the configured end, from the newest checkpoint in `config.run` if there is one; n-grams are counted.

    Where `config.cluster` asks for other processes, a script does this below `if __name__ == "__main__":`.

    Returns:
        the run folder, the step that was reached, and the step from which this call began.

    Raises:
        ConfigError: `data` or `run` is missing, or the folder holds another run.
        CorpusError: the corpus is missing, damaged, or has no text to train on.
        CheckpointError: there are checkpoints, and none is whole.
        ClusterError: workers were lost more often than is allowed.
        LossError: a loss was bad, and the run was to stop then.
        Stopped: someone asked for it; all is saved.
    """
    if isinstance(config.model, NgramConfig):
        from pipeline.ngram_run import train_ngrams

        return train_ngrams(config)
    from pipeline.runner import train as run_training

    return run_training(config)


def evaluate(
    run: str,
    *overrides: str,
    split: str = "test",
    checkpoint: Literal["best", "last"] | int = "best",
    data: str | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
) -> "Evaluation":
    """Scores a split with the model of a run.

    Args:
        run: the run folder.
        overrides: further keys of `evaluate` as on the command line: `neural_cache.size=500`, `mix=[RUN2,RUN3]`.
        split: of the corpus.
        checkpoint: the best by validation nats, the last, or that of a step.
        data: another prepared corpus with the same vocabulary; None: that of the run.
        accelerator: the device; `auto` takes CUDA where there is a GPU.

    Raises:
        ConfigError: the folder holds no run, the device is not there, or an override is none.
        CorpusError: the corpus is missing or damaged, of another vocabulary, or without the split.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from pipeline.evaluation import evaluate_split

    keys = {"run": run, "split": split, "checkpoint": checkpoint, "accelerator": accelerator, "data": data or "null"}
    typed = [*(f"{key}={value}" for key, value in keys.items()), *overrides]
    return evaluate_split(load(EvaluateConfig, typed, name="evaluate"))


def load_model(run: str, *, checkpoint: Literal["best", "last"] | int = "best") -> "TrainedModel":
    """The model of a run, on the CPU, with the run's configuration.

    Args:
        run: the run folder.
        checkpoint: the best by validation nats, the last, or that of a step.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from pipeline.training.restore import load_trained

    config = load(EvaluateConfig, [f"run={run}", f"checkpoint={checkpoint}"], name="evaluate")
    return load_trained(run, config.checkpoint)
