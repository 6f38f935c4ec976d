"""`synthesize`: made text at the scale of a real corpus, for trying out `prepare` and for measuring.

In: `to=FOLDER num_words=1000000000 seed=1`. Out: files `00000.txt`, ... of ten million words each, of which a call
makes those that the folder lacks. Refuses: a missing `to`, and what `pipeline.corpus.synthesis` refuses.
"""

import time
from collections.abc import Sequence

from rich.console import Console

from jobs.prepare import Bar
from pipeline.cluster.tasks import task_runner
from pipeline.config import SynthesizeConfig, given, load
from pipeline.corpus.synthesis import Synthesis, check_target, synthesize


def main(arguments: Sequence[str]) -> None:
    """Runs the verb.

    Raises:
        PipelineError: the folder is not one to write to.
    """
    config = load(SynthesizeConfig, arguments, name="synthesize")
    to = given("to", config.to)
    synthesis = Synthesis(num_words=config.num_words, seed=config.seed)
    check_target(synthesis, to)
    console = Console()
    with task_runner(config.cluster) as run_tasks, Bar(console) as bar:
        begun_seconds = time.monotonic()
        made = synthesize(synthesis, to, run_tasks=run_tasks, progress=bar)
        seconds = time.monotonic() - begun_seconds
    size_bytes = sum(each.size_bytes for each in made)
    lines = [
        f"text: {config.num_words:,} words, of which {sum(each.num_words for each in made):,} were made now",
        f"time: {seconds:.1f} s ({size_bytes / seconds / 1e6:.1f} MB/s)",
        f"to: {to}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
