"""Which weights of a run are the best."""

from __future__ import annotations

import itertools
import math

from l3rs.own_images.keeper import rank


def test_what_is_not_finite_is_worse_than_any_number() -> None:
    worst_first = [(math.nan, 0.1), (0.0, 9.0), (0.9, math.nan), (0.9, 0.7), (0.9, 0.5)]
    assert all(rank(*worse) < rank(*better) for worse, better in itertools.pairwise(worst_first))
