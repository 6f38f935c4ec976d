"""Plain text: a document is a file, or with `documents: lines` each line of it."""

from pipeline.corpus.readers.reader import Reader, cut_at_lines, text_bytes

TEXT = Reader(suffixes=(".txt",), cut=cut_at_lines, deciding_bytes=text_bytes)
