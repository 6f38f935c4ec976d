"""`scores.json` of a run folder: what its checkpoints have scored, so that nothing is scored twice.

In: scores. Out: the file, and the score of the same checkpoint on the same tokens by the same version.
Refuses nothing: a file that holds no scores is written anew.
"""

from contextlib import suppress

from pipeline import storage
from pipeline.config import Section, validated
from pipeline.errors import ConfigError

SCORES_NAME = "scores.json"


class Scored(Section):
    """What was scored; a score holds for all of this and nothing else."""

    checkpoint: str
    """Digest of the checkpoint's file."""
    corpus: str
    """Fingerprint of the corpus."""
    split: str
    """Of the corpus."""
    version: str
    """Of the code that scored it."""


class KeptScore(Section):
    """A score and what only the model itself tells."""

    of: Scored
    """What was scored."""
    protocol: str
    """By which it was scored."""
    total_nats: float
    """Of the model."""
    unigram_nats: float
    """Of the unigram baseline."""
    num_targets: int
    """Tokens of the split."""
    num_parameters: int
    """Numbers that the model holds."""


class _Scores(Section):
    scores: tuple[KeptScore, ...]


def kept_score(run: str, of: Scored) -> KeptScore | None:
    """The score of a run; None if it was not kept."""
    return next((each for each in _read(run) if each.of == of), None)


def keep_score(run: str, score: KeptScore) -> None:
    """Keeps a score; those of checkpoints that are gone stay, as they say of which they are."""
    scores = (*(each for each in _read(run) if each.of != score.of), score)
    text = _Scores(scores=scores).model_dump_json(indent=1)
    storage.publish_bytes(storage.join(run, SCORES_NAME), text.encode() + b"\n")


def _read(run: str) -> tuple[KeptScore, ...]:
    with suppress(ConfigError):
        text = storage.read_or_nothing(storage.join(run, SCORES_NAME)).decode(errors="replace")
        return validated(_Scores, text).scores if text else ()
    return ()
