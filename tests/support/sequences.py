"""Token sequences in memory."""

import numpy as np


class Ids:
    """A token sequence that takes no read beyond its ends."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.ids)
        return self.ids[start:stop]


class Places:
    """A token sequence of any length that keeps nothing: token i is i + 1, its place, and none is `<eos>`."""

    def __init__(self, num_tokens):
        self.num_tokens = num_tokens
        self.num_read = 0

    def __len__(self):
        return self.num_tokens

    def read(self, start, stop):
        assert 0 <= start <= stop <= self.num_tokens
        self.num_read += stop - start
        return np.arange(start + 1, stop + 1, dtype=np.int64)
