"""Discounts of modified Kneser-Ney: what each order takes from n-grams that are rare.

In: how many n-grams of an order have the adjusted counts 1, 2, 3 and 4. Out: what is taken from a count of 1, of 2, and
of 3 or more. Where the formula gives none that can be, as on a text that is too small, those that lmplz falls back to.

Source: Chen & Goodman 1998, TR-10-98, section 3; Heafield et al. 2013.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Discounts:
    """Those of one order.

    Attributes:
        taken: from a count of 0 (nothing), 1, 2, and 3 or more.
        is_fallback: whether the text was too small for the formula.
    """

    taken: tuple[float, float, float, float]
    is_fallback: bool


def discounts_of(num_with_count: Sequence[int]) -> Discounts:
    """The discounts of an order.

    Args:
        num_with_count: n-grams by their adjusted count; those of 1 to 4 are read.
    """
    n = [int(each) for each in num_with_count]
    if all(n[1:4]):
        y = n[1] / (n[1] + 2 * n[2])
        one, two, three = (count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3))
        if 0 < one <= 1 and 0 < two <= 2 and 0 < three <= 3:
            return Discounts((0.0, one, two, three), is_fallback=False)
    return Discounts((0.0, *FALLBACK), is_fallback=True)
