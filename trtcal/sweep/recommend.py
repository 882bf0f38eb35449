"""What a sweep teaches: which batch size to take, whether order matters, which samples set the ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trtcal.judging.accuracy import bootstraps
from trtcal.judging.metrics import METRICS
from trtcal.ranges.growth import GROWTH
from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method
from trtcal.sweep.emulation import RULES
from trtcal.sweep.trials import Sweep, Trial, relative_change, usable

STILL = 0.01  # a relative change of a threshold below this is none
OUTLIER = 1.5  # times the largest |x| of every other sample make one an outlier,
OUTLIERS = 12  # of which at most so many are named
CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Outlier:
    """A sample that alone sets the range of tensors: without it the widest of them shrinks by ``factor``."""

    sample: str
    tensor: str
    factor: float
    tensors: int


@dataclass(frozen=True)
class Recommendation:
    """Sentences with evidence, most important first.

    ``batch_size`` is the smallest whose result cannot be told from the best; None where the sweep cannot say.
    ``order_matters`` and ``control_flat`` are what the sentences say of the order arm and the MinMax arm, None
    where those were not run. ``options`` are those of ``trtcal calibrate`` that do what the headline says.
    """

    headline: str
    batch_size: int | None
    order_matters: bool | None
    control_flat: bool | None
    evidence: tuple[str, ...]
    outliers: tuple[Outlier, ...]
    options: tuple[str, ...] = ()


def recommend(sweep: Sweep, stats: ActivationStats) -> Recommendation:
    """Sweep and the statistics behind it -> what to do, with the numbers that say so.

    Judged by the metric where it gives a value per sample, else by agreement with FP32, else by how far
    thresholds move. Intervals are of 95% and hold both chances at once, that of the samples and that of the
    configurations: both are resampled. What they do not exclude is no difference.
    """
    name = next((trial.method for trial in sweep.trials if method(trial.method).depends_on_batches), MEASURED)
    flat = control_is_flat(sweep)
    evidence = [_CONTROL[flat]]
    failed = sum(trial.error is not None for trial in sweep.trials)
    if failed:
        evidence.append(f"{failed} of {len(sweep.trials)} trials failed; what follows is said of the others.")
    outliers = find_outliers(stats)
    sweep, said = without_unusable(sweep)
    evidence += said
    studied = [t for t in sweep.trials if t.method == name and RULES[t.configuration.growth].tensorrt]
    if not studied and said:
        others = list(dict.fromkeys(trial.method for trial in sweep.trials)) or ["minmax"]
        headline = f"Do not take {name}: in no arrangement are its thresholds usable. Those of {others[0]} are."
        return Recommendation(headline, None, None, flat, tuple(evidence), outliers, ("--method", others[0]))
    if not studied:
        headline = f"Without trials of {name} under TensorRT's growth rule the sweep cannot say what batches do to it."
        return Recommendation(headline, None, None, flat, tuple(evidence), outliers)
    kind = _kind(sweep, studied)
    other: str | None = None
    options: tuple[str, ...] = ()
    size: int | None
    best: int | None
    if kind is not None:
        size, best, matters, sentences = _by_values(studied, kind)
        other, options = _other_methods(sweep, studied, size, kind)
    else:
        size, matters, sentences = _by_thresholds(sweep, studied)
        best = size
    evidence += sentences
    if size is not None and other is None:
        options = "--method", name, "--batch-size", str(best)
    if size is None:
        headline = "No batch size keeps the thresholds near the batch-invariant ones"
    elif kind is None:
        headline = f"From batches of {size} on half of the thresholds stay within 1% of the batch-invariant ones"
    elif size == best:
        headline = f"{f'With {name}, take' if other else f'Calibrate {name} with'} batches of {size}"
    else:
        headline = f"With {name}, batches of {best} did best, those of {size} may be as good"
    headline += f"; {_ORDER[matters]}."
    if other is not None:
        headline = f"{other} {headline}"
    if outliers:
        worst = outliers[0]
        evidence.append(
            f"Drop sample {worst.sample} and the range of {worst.tensor} shrinks {worst.factor:.1f}x; "
            f"it sets the range of {worst.tensors} tensor{'s' if worst.tensors > 1 else ''}."
        )
    return Recommendation(headline, size, matters, flat, tuple(evidence), outliers, options)


def without_unusable(sweep: Sweep) -> tuple[Sweep, list[str]]:
    """Sweep -> the same without trials that have unusable thresholds, of which no advice is given, and what is said."""
    bad = [trial for trial in sweep.trials if trial.unusable is not None]
    if not bad:
        return sweep, []
    names = dict.fromkeys(trial.method for trial in bad)
    said = (
        f"{len(bad)} of {len(sweep.trials)} trials are unusable and left out of all advice, of {', '.join(names)}: in "
        f"the first of them {bad[0].unusable}."
    )
    return replace(sweep, trials=tuple(trial for trial in sweep.trials if trial.unusable is None)), [said]


_CONTROL = {
    True: "The MinMax control is the same in every arrangement, as it must be.",
    False: "The MinMax control is NOT the same in every arrangement: the measurement is broken, trust nothing below.",
    None: "There is no MinMax control: it was not run, or dropped samples make it differ rightly.",
}
_ORDER = {
    True: "the order of the samples matters",
    False: "the order of the samples does not matter",
    None: "the order of the samples was not varied",
}


def enough_samples(drift: Mapping[str, Any]) -> str | None:
    """Drift of a sweep (see ``store``) -> from how many samples on thresholds hardly move; None if unknown.

    Of the method that needs the fewest samples and of the one that needs the most.
    """
    needed: dict[str, int] = {}
    for name, rows in drift.items():
        regrouped = None
        for samples, change in reversed(list(zip(rows["samples"], rows["change_median"], strict=True))):
            if change > STILL:
                break
            regrouped = samples
        if regrouped is not None:
            needed[name] = regrouped
    if not needed:
        return None
    total = max(samples for rows in drift.values() for samples in rows["samples"])
    fewest, most = min(needed, key=lambda name: needed[name]), max(needed, key=lambda name: needed[name])
    if needed[most] == total:
        return f"Of {total} samples all are needed before half of {most}'s thresholds stay within 1%: take more."
    return (
        f"Half of the thresholds stay within 1% of those of all {total} samples from {needed[fewest]} samples on "
        f"({fewest}), at the latest from {needed[most]} on ({most})."
    )


def control_is_flat(sweep: Sweep) -> bool | None:
    """Whether MinMax gave the same thresholds everywhere; None where it was not run or samples were dropped."""
    control = [trial.amax for trial in sweep.trials if not method(trial.method).clips]
    if not control or sweep.partial == "drop":
        return None
    return all(np.array_equal(amax, control[0]) for amax in control)


@dataclass(frozen=True)
class _Kind:
    """What trials are judged by, and how its values read."""

    name: str
    share: bool
    accuracy: bool

    def of(self, trial: Trial) -> np.ndarray | None:
        """The values of a trial, one per sample."""
        judged = trial.judgement
        if judged is None:
            return None
        return judged.accuracy if self.accuracy else judged.agreement

    def show(self, value: float, sign: bool = False) -> str:
        """A value for people: shares in percent, anything else as it is."""
        if self.share:
            return f"{value:+.2%}" if sign else f"{value:.2%}"
        return f"{value:+.4g}" if sign else f"{value:.4g}"

    def interval(self, low: float, high: float) -> str:
        """The interval of a difference."""
        return f"{self.show(low, True)} to {self.show(high, True)}"


def _kind(sweep: Sweep, studied: Sequence[Trial]) -> _Kind | None:
    """By what the trials that did not fail can be compared sample by sample; None for nothing of that kind."""
    accuracy = _Kind("accuracy" if sweep.metric in METRICS else sweep.metric, sweep.metric in METRICS, True)
    for kind in (accuracy, _Kind("agreement with FP32", True, False)):
        if any((values := kind.of(trial)) is not None and values.size > 1 for trial in studied):
            return kind
    return None


def find_outliers(stats: ActivationStats) -> tuple[Outlier, ...]:
    """Up to 12 samples whose largest |x| in some tensor is 1.5 times that of every other sample, widest first."""
    if len(stats.samples) < 2:
        return ()
    found: dict[int, list[tuple[float, str]]] = {}
    for name, tensor in usable(stats).items():
        second, first = np.sort(tensor.sample_amax)[-2:]
        if second > 0 and first / second >= OUTLIER:
            found.setdefault(int(np.argmax(tensor.sample_amax)), []).append((float(first / second), name))
    outliers = [Outlier(stats.samples[sample], max(rows)[1], max(rows)[0], len(rows)) for sample, rows in found.items()]
    return tuple(sorted(outliers, key=lambda outlier: -outlier.factor)[:OUTLIERS])


def _matrix(trials: Sequence[Trial], kind: _Kind) -> np.ndarray:
    """Values of the trials that did not fail, (trials, samples)."""
    return np.array([values for trial in trials if (values := kind.of(trial)) is not None])


def _paired(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """Two sets of trials on the same samples -> interval of the difference of their means.

    Trials of each set and samples are resampled: what one lucky configuration does is not taken for what its batch
    size does.
    """
    rng = np.random.default_rng(0)
    samples = one.shape[1]
    differences = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        first = one[rng.integers(len(one), size=len(one))].mean(axis=0)
        second = two[rng.integers(len(two), size=len(two))].mean(axis=0)
        differences[i] = (first - second)[rng.integers(samples, size=samples)].mean()
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _usual(studied: Sequence[Trial], size: int, kind: _Kind) -> np.ndarray:
    """Values at a batch size in orders that come by chance: the given one and shuffles, or else all there are."""
    at = [trial for trial in studied if trial.configuration.batch_size == size]
    usual = [trial for trial in at if trial.configuration.order in ("given", "shuffled")]
    return _matrix(usual, kind) if len(_matrix(usual, kind)) else _matrix(at, kind)


def _by_values(studied: Sequence[Trial], kind: _Kind) -> tuple[int, int, bool | None, list[str]]:
    """The smallest batch size as good as the best, the best, whether order matters, and sentences."""
    judged = [trial for trial in studied if kind.of(trial) is not None]
    sizes = sorted({trial.configuration.batch_size for trial in judged})
    values = {size: _usual(judged, size, kind) for size in sizes}
    best = max(sizes, key=lambda size: float(values[size].mean()))
    sentences: list[str] = []
    chosen, worse = best, []
    for size in sizes:
        if size == best:
            break
        low, high = _paired(values[size], values[best])
        difference = f"{kind.show(float(values[size].mean() - values[best].mean()), True)}, {kind.interval(low, high)}"
        if high >= 0:
            chosen = size
            sentences.append(
                f"Batches of {size} give {kind.show(float(values[size].mean()))} {kind.name}, of {best} the best, "
                f"{kind.show(float(values[best].mean()))}; the difference ({difference}) cannot be told from none."
            )
            break
        worse.append(f"{size} ({difference})")
    if worse:
        sentences.insert(
            0,
            f"Batches of {best} give {kind.show(float(values[best].mean()))} {kind.name}; worse are batches of "
            f"{', '.join(worse)}.",
        )
    matters, said = _order_effect(judged, sizes, kind)
    sentences += said
    least = sizes[0]
    first = _matrix(
        [t for t in judged if t.configuration.order == "largest-first" and t.configuration.batch_size == least], kind
    )
    if len(first) and chosen != least:
        low, high = _paired(first, values[least])
        verdict = "repairs" if low > 0 else "does not repair"
        sentences.append(
            f"Putting the largest samples first {verdict} batches of {least} "
            f"({kind.show(float(first.mean() - values[least].mean()), True)}, {kind.interval(low, high)})."
        )
    return chosen, best, matters, sentences


def _order_effect(studied: Sequence[Trial], sizes: Sequence[int], kind: _Kind) -> tuple[bool | None, list[str]]:
    """The largest effect of order at any batch size; intervals widened for having looked at so many pairs."""
    at = {size: [trial for trial in studied if trial.configuration.batch_size == size] for size in sizes}
    pairs = sum(len(trials) - 1 for trials in at.values())
    if not pairs:
        return None, []
    largest: tuple[float, str] | None = None
    for size, trials in at.items():
        matrix = _matrix(trials, kind)
        top = int(matrix.mean(axis=1).argmax())
        differences = matrix - matrix[top]
        intervals = bootstraps(differences, confidence=1 - 0.05 / pairs, resamples=4000)
        for trial, difference, (low, high) in zip(trials, differences, intervals, strict=True):
            if largest is not None and difference.mean() >= largest[0]:
                continue
            if high < 0:
                largest = (
                    float(difference.mean()),
                    f"Order matters most with batches of {size}: {_name(trial)} loses "
                    f"{kind.show(-float(difference.mean()))} {kind.name} against {_name(trials[top])} "
                    f"({kind.interval(low, high)}).",
                )
    return largest is not None, [largest[1]] if largest else ["No two orders can be told apart at any batch size."]


def _name(trial: Trial) -> str:
    seed = f" (seed {trial.configuration.seed})" if trial.configuration.seed is not None else ""
    return f"{trial.configuration.order}{seed}"


def _by_thresholds(sweep: Sweep, studied: Sequence[Trial]) -> tuple[int | None, bool | None, list[str]]:
    sizes = sorted({trial.configuration.batch_size for trial in studied})
    moved = {}
    for size in sizes:
        changes = [relative_change(sweep, trial) for trial in studied if trial.configuration.batch_size == size]
        moved[size] = float(np.median(changes))
    changes_text = ", ".join(f"{size}: {change:.1%}" for size, change in moved.items())
    sentences = [
        f"Against the batch-invariant thresholds half of them move by more than, by batch size, {changes_text}."
    ]
    chosen = next((size for size in sizes if moved[size] <= STILL), None)
    spread = []
    for size in sizes:
        amax = np.array([t.amax for t in studied if t.configuration.batch_size == size], np.float64)
        amax = amax[:, np.isfinite(amax).all(axis=0)]
        if len(amax) > 1 and amax.size:
            spread.append(float(np.median(np.ptp(amax, axis=0) / np.maximum(amax.mean(axis=0), 1e-300))))
    matters = max(spread) > STILL if spread else None
    if spread:
        sentences.append(f"Between orders half of the thresholds differ by up to {max(spread):.1%}.")
    return chosen, matters, sentences


def _other_methods(
    sweep: Sweep, studied: Sequence[Trial], size: int, kind: _Kind
) -> tuple[str | None, tuple[str, ...]]:
    """The best that does not depend on batches at all, where it beats the method studied at its batch size; options."""
    name = studied[0].method
    base = _usual([trial for trial in studied if kind.of(trial) is not None], size, kind)
    best: tuple[float, str, tuple[str, ...]] | None = None
    seen: set[str] = set()
    for trial in sweep.trials:
        moved, rule = method(trial.method).depends_on_batches, RULES[trial.configuration.growth]
        values = kind.of(trial)
        if (moved and not rule.invariant) or values is None or trial.method in seen:
            continue
        seen.add(trial.method)
        low, high = _paired(values[None], base)
        if low > 0 and (best is None or values.mean() > best[0]):
            method_taken = "" if trial.method == name else f"{trial.method} on "
            taken = f"{method_taken}the batch-invariant histogram" if moved else trial.method
            gain = f"{kind.show(float(values.mean() - base.mean()), True)} ({kind.interval(low, high)})"
            growth = ("--growth", trial.configuration.growth) if moved else ()
            options = ("--method", trial.method, *growth)
            sentence = f"Take {taken}: {gain} against {name}, whatever the batches."
            best = float(values.mean()), sentence, options if not moved or trial.configuration.growth in GROWTH else ()
    return best[1:] if best else (None, ())
