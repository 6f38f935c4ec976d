"""datatrove: lines as documents, words counted by a step of one's own, ids by its DocumentTokenizer (WordLevel)."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseDiskReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.utils.logging import logger
from shared import EOS, UNK, chosen, prepare_main, write_vocabulary
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit


class LineReader(BaseDiskReader):
    """A document for each line; datatrove drops the empty ones."""

    name = "lines"

    def read_file(self, filepath: str) -> Iterator[Document]:
        with self.data_folder.open(filepath, "r", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                if document := self.get_document_from_dict({"text": line}, filepath, number):
                    yield document


class WordCounter(PipelineStep):
    """Counts words; writes the vocabulary as a tokenizer at the end."""

    name = "words"
    type = "count"

    def __init__(self, out: Path, size: int) -> None:
        super().__init__()
        self.out, self.size = out, size

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        counts: Counter[str] = Counter()
        for document in data:
            counts.update(document.text.split())
            counts[EOS] += 1
            yield document
        words = chosen(counts, self.size)
        write_vocabulary(self.out, words)
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        tokenizer.save(str(self.out / "tokenizer.json"))


def make(text: Path, out: Path, size: int) -> None:
    logger.remove()
    logger.add(sys.stderr, level="ERROR")

    def lines() -> LineReader:
        return LineReader(str(text.parent), glob_pattern=text.name)

    LocalPipelineExecutor([lines(), WordCounter(out, size)], tasks=1, logging_dir=str(out / "logs-1")).run()
    tokenize = DocumentTokenizer(
        str(out / "ids"), str(out / "tokenizer.json"), eos_token=EOS, shuffle_documents=False, save_final_metadata=False
    )
    LocalPipelineExecutor([lines(), tokenize], tasks=1, logging_dir=str(out / "logs-2")).run()


def read_ids(out: Path) -> Iterator[np.ndarray]:
    for path in sorted((out / "ids").glob("*.ds")):
        yield np.fromfile(path, dtype=np.uint16).astype(np.int32)


if __name__ == "__main__":
    prepare_main(make, read_ids)
