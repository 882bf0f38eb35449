"""What the calibration batch size does to a histogram, in five small stories with numbers one can check by hand.

    python scripts/batch_size_stories.py

docs/batch-size.md shows this output and explains it; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trtcal.passes.collect import collect
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.thresholds import entropy, entropy_bin
from trtcal.sweep.emulation import groups, replay, square_max, trajectory

RULES = ("double", "square-max", "square-range", "power-of-two", "exact")
BARS = " .:-=+*#%@"


def main() -> None:
    print("1. The value 2.4 arrives alone")
    limits([2.4])
    print("\n2. It arrives after 1.54")
    limits([1.54, 2.4])
    print(f"   square-max, 1.54^2 rounded to 2.4: 2.4 fits, the range stays {square_max(round(1.54**2, 1), 2.4)}")
    quiet, loud = samples(16), samples(16)
    loud[-1] *= 40 / np.abs(loud[-1]).max()
    print("\n3. Batches of 1, and the last of 16 samples is huge")
    story(loud, (1, 16))
    print("\n4. The same with the huge sample first")
    story(loud[::-1], (1, 16))
    print("\n5. Sixteen samples that are alike")
    story(quiet, (1, 4, 16))


def limits(maxima: Sequence[float]) -> None:
    """How each rule's range follows from the maxima of the batches."""
    for rule in RULES:
        path = trajectory(maxima, rule)
        print(f"   {rule:13} {' -> '.join(f'{stage.limit:.4g}' for stage in path.stages)}")


def samples(number: int) -> np.ndarray:
    """(number, 4096) normal values, the largest of each sample between 0.9 and 1."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(number, 4096))
    peaks = rng.uniform(0.9, 1.0, size=(number, 1))
    scaled: np.ndarray = x / np.abs(x).max(axis=1, keepdims=True) * peaks
    return scaled.astype(np.float32)


def network(batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return batch


def story(x: np.ndarray, batch_sizes: Sequence[int]) -> None:
    """TensorRT's histogram of these samples for each batch size, as a line of 64 characters over its range."""
    tensor = collect(network, [{"x": x}]).tensors["x"]
    for size in batch_sizes:
        made = replay(tensor, np.arange(len(x)), size)
        alone = collect(network, [{"x": x[rows]} for rows in groups(np.arange(len(x)), size)]).tensors["x"].batch_grid
        assert alone is not None
        hist, path = alone, made.trajectory
        print(
            f"   batches of {size:<2}  first maximum {path.first_amax:.3f}, {path.doublings:.0f} doublings, "
            f"range {hist.limit:.3f}, {np.mean(hist.counts == 0):.0%} of the bins empty"
        )
        print(f"     |{drawn(hist)}|  entropy keeps {entropy_bin(hist.counts)} bins: amax {entropy(hist):.4f}")


def drawn(hist: Histogram) -> str:
    """A histogram as a line: the darker, the more elements, on a logarithmic scale."""
    counts = np.log1p(hist.coarse(64).counts)
    return "".join(BARS[int(np.ceil(level * (len(BARS) - 1)))] for level in counts / counts.max())


if __name__ == "__main__":
    main()
