"""What a sweep teaches: which batch size to take, whether order matters, which samples set the ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtcal.accuracy import bootstrap
from trtcal.stats import ActivationStats
from trtcal.sweep import Sweep, Trial, usable

STILL = 0.01  # a relative change of a threshold below this is none


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
    ``order_matters`` and ``control_flat`` are what the sentences say of the order arm and the MinMax arm.
    """

    headline: str
    batch_size: int | None
    order_matters: bool
    control_flat: bool
    evidence: tuple[str, ...]
    outliers: tuple[Outlier, ...]


def recommend(sweep: Sweep, stats: ActivationStats) -> Recommendation:
    """Sweep and the statistics behind it -> what to do, with the numbers that say so.

    Judged by accuracy where the sweep has it, else by agreement with FP32, else by how far thresholds move.
    Differences are paired by sample and bootstrapped; what the interval of 95% does not exclude is no difference.
    """
    entropy = [trial for trial in sweep.trials if trial.method == "entropy" and trial.arrangement.growth == "double"]
    evidence: list[str] = []
    flat = control_is_flat(sweep)
    evidence.append(
        "The MinMax control is the same in every arrangement, as it must be."
        if flat
        else "The MinMax control is NOT the same in every arrangement: the measurement is broken, trust nothing below."
    )
    outliers = find_outliers(stats)
    if not entropy:
        headline = (
            "The sweep has no entropy trials with TensorRT's growth rule, so batch size and order change nothing."
        )
        return Recommendation(headline, None, False, flat, tuple(evidence), outliers)
    if all(_values(trial) is not None for trial in entropy):
        size, order_matters, sentences = _by_values(entropy)
        other = _other_methods(sweep, entropy, size)
    else:
        size, order_matters, sentences = _by_thresholds(sweep, entropy)
        other = None
    evidence += sentences
    if size is None:
        headline = "No batch size keeps the thresholds near the batch-invariant ones"
    elif _values(entropy[0]) is None:
        headline = f"From batches of {size} on half of the thresholds stay within 1% of the batch-invariant ones"
    else:
        headline = f"{'With entropy, take' if other else 'Calibrate entropy with'} batches of {size}"
    headline += f"; the order of the samples {'matters' if order_matters else 'does not matter'}."
    if other is not None:
        headline = f"{other} {headline}"
    if outliers:
        worst = outliers[0]
        evidence.append(
            f"Drop sample {worst.sample} and the range of {worst.tensor} shrinks {worst.factor:.1f}x; "
            f"it sets the range of {worst.tensors} tensor{'s' if worst.tensors > 1 else ''}."
        )
    return Recommendation(headline, size, order_matters, flat, tuple(evidence), outliers)


def control_is_flat(sweep: Sweep) -> bool:
    """Whether MinMax gave the same thresholds everywhere; True where it was not asked for, or samples were dropped."""
    control = [trial.amax for trial in sweep.trials if trial.method == "minmax"]
    return sweep.partial == "drop" or all(np.array_equal(amax, control[0]) for amax in control)


def find_outliers(stats: ActivationStats, least: float = 1.5, most: int = 12) -> tuple[Outlier, ...]:
    """Samples whose largest |x| in some tensor is ``least`` times that of every other sample, widest first."""
    if len(stats.samples) < 2:
        return ()
    found: dict[int, list[tuple[float, str]]] = {}
    for name, tensor in usable(stats).items():
        second, first = np.sort(tensor.sample_amax)[-2:]
        if second > 0 and first / second >= least:
            found.setdefault(int(np.argmax(tensor.sample_amax)), []).append((float(first / second), name))
    outliers = [Outlier(stats.samples[sample], max(rows)[1], max(rows)[0], len(rows)) for sample, rows in found.items()]
    return tuple(sorted(outliers, key=lambda outlier: -outlier.factor)[:most])


def _values(trial: Trial) -> np.ndarray | None:
    """What a trial is judged by: accuracy per sample, or else agreement."""
    if trial.judgement is None:
        return None
    return trial.judgement.accuracy if trial.judgement.accuracy is not None else trial.judgement.agreement


def _mean(trials: Sequence[Trial]) -> np.ndarray:
    """Per-sample values, averaged over judged trials."""
    return np.asarray(np.mean([value for trial in trials if (value := _values(trial)) is not None], axis=0))


def _by_values(entropy: Sequence[Trial]) -> tuple[int | None, bool, list[str]]:
    sizes = sorted({trial.arrangement.batch_size for trial in entropy})
    usual = {
        size: [t for t in entropy if t.arrangement.batch_size == size and t.arrangement.order in ("given", "shuffled")]
        or [t for t in entropy if t.arrangement.batch_size == size]
        for size in sizes
    }
    means = {size: _mean(trials) for size, trials in usual.items()}
    best = max(sizes, key=lambda size: means[size].mean())
    kind = "accuracy" if entropy[0].judgement and entropy[0].judgement.accuracy is not None else "agreement with FP32"
    sentences, chosen, worse = [], best, []
    for size in sizes:
        low, high = bootstrap(means[size] - means[best])
        if size == best or high >= 0:
            chosen = size
            if size != best:
                sentences.append(
                    f"Batches of {size} give {means[size].mean():.2%} {kind}, of {best} the best, "
                    f"{means[best].mean():.2%}; the difference of {means[size].mean() - means[best].mean():+.2%} "
                    f"({low:+.2%} to {high:+.2%}) cannot be told from none."
                )
            break
        worse.append((size, f"{size}: {means[size].mean():.2%} ({low:+.2%} to {high:+.2%})"))
    if worse:
        sizes_text = ", ".join(text for _, text in worse)
        sentences.insert(
            0, f"Worse than batches of {best} with {means[best].mean():.2%} {kind} are batches of {sizes_text}."
        )
    matters, said = _order_effect(entropy, sizes, kind)
    sentences += said
    first = [t for t in entropy if t.arrangement.order == "largest-first" and t.arrangement.batch_size == sizes[0]]
    if first and sizes[0] != best:
        gain = _mean(first) - means[sizes[0]]
        low, high = bootstrap(gain)
        verdict = "repairs" if low > 0 else "does not repair"
        sentences.append(
            f"Putting the largest samples first {verdict} batches of {sizes[0]}: {gain.mean():+.2%} "
            f"({low:+.2%} to {high:+.2%})."
        )
    return chosen, matters, sentences


def _order_effect(entropy: Sequence[Trial], sizes: Sequence[int], kind: str) -> tuple[bool, list[str]]:
    """The largest effect of order at any batch size; intervals widened for having looked at so many pairs."""
    largest: tuple[float, str] | None = None
    pairs = sum(len([t for t in entropy if t.arrangement.batch_size == size]) - 1 for size in sizes)
    for size in sizes:
        trials = [trial for trial in entropy if trial.arrangement.batch_size == size]
        top = max(trials, key=lambda trial: float(_mean([trial]).mean()))
        for trial in trials:
            if trial is top:
                continue
            difference = _mean([trial]) - _mean([top])
            if not difference.any():
                continue
            low, high = bootstrap(difference, confidence=1 - 0.05 / max(pairs, 1), resamples=4000)
            if high < 0 and (largest is None or difference.mean() < largest[0]):
                largest = (
                    float(difference.mean()),
                    f"Order matters most with batches of {size}: {_name(trial)} loses {-difference.mean():.2%} {kind} "
                    f"against {_name(top)} ({low:+.2%} to {high:+.2%}).",
                )
    return largest is not None, [largest[1]] if largest else ["No two orders can be told apart at any batch size."]


def _name(trial: Trial) -> str:
    seed = f" (seed {trial.arrangement.seed})" if trial.arrangement.seed is not None else ""
    return f"{trial.arrangement.order}{seed}"


def _by_thresholds(sweep: Sweep, entropy: Sequence[Trial]) -> tuple[int | None, bool, list[str]]:
    sizes = sorted({trial.arrangement.batch_size for trial in entropy})
    moved = {}
    for size in sizes:
        changes = [np.abs(sweep.measures[t.arrangement].change) for t in entropy if t.arrangement.batch_size == size]
        moved[size] = float(np.median(changes))
    changes_text = ", ".join(f"{size}: {change:.1%}" for size, change in moved.items())
    sentences = [
        f"Against the batch-invariant thresholds half of them move by more than, by batch size, {changes_text}."
    ]
    chosen = next((size for size in sizes if moved[size] <= STILL), None)
    spread = []
    for size in sizes:
        amax = np.array([t.amax for t in entropy if t.arrangement.batch_size == size], np.float64)
        if len(amax) > 1:
            spread.append(float(np.median(np.ptp(amax, axis=0) / np.maximum(amax.mean(axis=0), 1e-300))))
    matters = bool(spread) and max(spread) > STILL
    if spread:
        sentences.append(f"Between orders half of the thresholds differ by up to {max(spread):.1%}.")
    return chosen, matters, sentences


def _other_methods(sweep: Sweep, entropy: Sequence[Trial], size: int | None) -> str | None:
    """The best that does not depend on batches at all, where it beats entropy at its best batch size."""
    reference = [
        t for t in entropy if t.arrangement.batch_size == size and t.arrangement.order in ("given", "shuffled")
    ]
    if not reference:
        return None
    base = _mean(reference)
    best: tuple[float, str] | None = None
    for trial in sweep.trials:
        if trial.method == "entropy" and trial.arrangement.growth != "power-of-two":
            continue
        values = _values(trial)
        if values is None:
            continue
        low, high = bootstrap(values - base)
        if low > 0 and (best is None or values.mean() > best[0]):
            name = "the batch-invariant histogram" if trial.method == "entropy" else trial.method
            gain = f"{(values - base).mean():+.2%} ({low:+.2%} to {high:+.2%})"
            best = float(values.mean()), f"Take {name}: {gain} against entropy, whatever the batches."
    return best[1] if best else None
