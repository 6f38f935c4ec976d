"""`verify`: whether a prepared corpus is what its manifest says.

In: `data=FOLDER`. Out: `ok` with counts. Refuses: a corpus without a manifest or with one that has another fingerprint
than its shards; a vocabulary or shards, each named on a line of its own, that are not the manifest's; counts that are
not those of the tokens.
"""

from collections.abc import Sequence

from pipeline.config import VerifyConfig, given, load
from pipeline.corpus.manifest import check_fingerprint, check_shards, check_vocabulary, read_manifest
from pipeline.corpus.tokens import check_counts
from pipeline.errors import CorpusError


def main(arguments: Sequence[str]) -> None:
    """Runs the verb: reads the digest of every shard, on all cores, and counts its tokens.

    Raises:
        PipelineError: the corpus is not whole.
    """
    data = given("data", load(VerifyConfig, arguments, name="verify").data)
    manifest = read_manifest(data)
    vocabulary = check_vocabulary(data, manifest)
    check_fingerprint(data, manifest)
    problems = check_shards(data, manifest, digests=True)
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    for problem in problems:
        print(problem)
    if problems:
        raise CorpusError(
            f"data={data}: {len(problems)} of {num_shards} token shards are bad; run `python -m jobs prepare` again"
        )
    if differences := check_counts(data, manifest, vocabulary):
        raise CorpusError(f"data={data}: {'; '.join(differences)}; run `python -m jobs prepare` again")
    counts = ", ".join(f"{name} {split.num_tokens:,} tokens" for name, split in manifest.splits.items())
    print(f"ok: {num_shards} token shards, {counts}, vocabulary {manifest.vocab_size:,} words")
