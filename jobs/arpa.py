"""`python -m jobs arpa`: an n-gram model as an ARPA file, for KenLM, SRILM and Kaldi.

In: `run=FOLDER to=FILE.arpa`. Out: the file, and how many n-grams it has. Refuses: a run whose model is not of n-grams,
and a corpus whose words are not the model's.
"""

from collections.abc import Sequence

from pipeline.config import ArpaConfig, given, load
from pipeline.ngram_run import export_arpa


def main(arguments: Sequence[str]) -> None:
    """Writes the file.

    Raises:
        PipelineError: the run or the corpus is not one to write it from.
    """
    config = load(ArpaConfig, arguments, name="arpa")
    to = given("to", config.to)
    sizes = export_arpa(given("run", config.run), to, data=config.data)
    print(f"{to} holds {', '.join(f'{size:,} {order}-grams' for order, size in enumerate(sizes, 1))}")
