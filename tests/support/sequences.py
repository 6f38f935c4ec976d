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
