"""How sure a mean over examples is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from x2vlm.errors import InvalidSample


def bootstrap_interval(values: Sequence[float] | NDArray[np.floating], samples: int = 1000) -> tuple[float, float]:
    """95 % interval of the mean by resampling examples with a fixed seed."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        raise InvalidSample("empty_split" if array.size == 0 else "nan_score", "nothing to resample")
    generator = np.random.default_rng(20221122)
    means = array[generator.integers(0, array.size, (samples, array.size))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
