"""What a sweep teaches: which method and batch size to take, whether order matters, which samples set the ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trtcal.ranges.measuring import MEASURED
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method
from trtcal.sweep.choosing import (
    CONFIDENCE,
    Choice,
    Chosen,
    Measure,
    choices,
    choose,
    compared,
    matrix,
    means,
    measures_of,
    samples_of,
    whole_trials,
)
from trtcal.sweep.emulation import RULES
from trtcal.sweep.trials import Sweep, Trial, relative_change, usable

STILL = 0.01  # a relative change of a threshold below this is none
OUTLIER = 1.5  # times the largest |x| of every other sample make one an outlier,
OUTLIERS = 12  # of which at most so many are named
ORDER_RESAMPLES = 4000  # as many orders are looked at, far ends of an interval are wanted
NAMED = 6  # methods that a sentence compares


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
    where those were not run. ``options`` are those of ``trtcal calibrate`` that do what the headline says, ``method``
    the one among them, and ``decided_by`` the measure that decided for it, None where nothing was judged. ``command``
    is the whole command, quoted for a shell; "" where there is none.
    """

    headline: str
    batch_size: int | None
    order_matters: bool | None
    control_flat: bool | None
    evidence: tuple[str, ...]
    outliers: tuple[Outlier, ...]
    options: tuple[str, ...] = ()
    method: str | None = None
    decided_by: str | None = None
    command: str = ""


def recommend(sweep: Sweep, stats: ActivationStats) -> Recommendation:
    """Sweep and the statistics behind it -> what to do, with the numbers that say so.

    Decided by the first measure that can tell choices apart, see :mod:`trtcal.sweep.choosing`; where none was taken,
    by how far thresholds move. Intervals are of 95% and hold both chances at once, that of the samples and that of the
    configurations: both are resampled. What they do not exclude is no difference. Of trials with unusable thresholds
    nothing is advised, whatever their numbers.
    """
    name = next((trial.method for trial in sweep.trials if method(trial.method).depends_on_batches), MEASURED)
    flat = control_is_flat(sweep)
    evidence = [_CONTROL[flat]]
    failed = sum(trial.error is not None for trial in sweep.trials)
    if failed:
        evidence.append(f"{failed} of {len(sweep.trials)} trials failed; what follows is said of the others.")
    was_there = any(trial.method == name for trial in sweep.trials)
    sweep, said = without_unusable(sweep)
    evidence += said
    studied = [t for t in sweep.trials if t.method == name and RULES[t.configuration.growth].tensorrt]
    measures = measures_of(sweep)
    chosen = choose(choices(sweep), measures)
    batches = _of_batches(sweep, studied, measures, chosen)
    options: tuple[str, ...] = ()
    headline = ""
    if chosen is not None:
        headline, against = _of_methods(sweep, chosen, studied, measures)
        options = chosen.best.options
        evidence += against
        if not options:
            evidence.append("No command repeats that: a calibration takes samples in their given order or shuffled.")
    elif any(trial.judgement is not None for trial in sweep.trials):
        headline = "Nothing could be compared with FP32, so thresholds alone are."
    if chosen is None and batches.size is not None:
        options = "--method", name, "--batch-size", str(batches.size)
    if studied:
        headline = f"{headline} {_batches_headline(name, batches, chosen, alone=not headline)}".lstrip()
    elif said and was_there:
        headline = f"Do not take {name}: in no arrangement are its thresholds usable. {headline}".rstrip()
        if chosen is None:
            others = list(dict.fromkeys(trial.method for trial in sweep.trials)) or ["minmax"]
            headline, options = f"{headline} Those of {others[0]} are.", ("--method", others[0])
    else:
        without = f"Without trials of {name} under TensorRT's growth rule the sweep cannot say what batches do to it."
        headline = f"{headline} {without}".lstrip()
    evidence += batches.sentences
    outliers = find_outliers(stats)
    if outliers:
        worst = outliers[0]
        evidence.append(
            f"Drop sample {worst.sample} and the range of {worst.tensor} shrinks {worst.factor:.1f}x; "
            f"it sets the range of {worst.tensors} tensor{'s' if worst.tensors > 1 else ''}."
        )
    return Recommendation(
        headline,
        batches.size,
        batches.order_matters,
        flat,
        tuple(evidence),
        outliers,
        options,
        options[1] if options else None,
        None if chosen is None else _decisive(chosen).name,
    )


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


def _studied(choice: Choice, studied: Sequence[Trial]) -> bool:
    return any(choice.own is trial for trial in studied)


def _samples(sweep: Sweep) -> int:
    """On how many samples was judged?"""
    return max((samples_of(trial) for trial in whole_trials(sweep)), default=0)


# --- methods


def _of_methods(
    sweep: Sweep, chosen: Chosen, studied: Sequence[Trial], measures: Sequence[Measure]
) -> tuple[str, list[str]]:
    """What was chosen -> the headline's sentence about methods, "" where the batch sizes say it all; sentences."""
    best, by = chosen.best, _decisive(chosen)
    others = dict.fromkeys(choice.group for choice in chosen.choices if choice.group != best.group)
    early = _early(sweep, chosen)
    evidence = [*_against_others(chosen, by), *_gone_early(sweep, chosen)]
    ours = _studied(best, studied)
    first = by is measures[0] and not _tied_with(chosen)
    if not others:
        only = "all others were worse on a part of the samples" if early else "nothing else was judged"
        return "" if ours else f"Take {best}; {only}.", evidence
    if ours and (first or len(measures) == 1):
        return "", evidence
    if first:
        rival = _rival(chosen, studied, by)
        difference, low, high = chosen.difference(best, rival, by)
        interval = "" if by.single else f" ({by.interval(low, high)})"
        whatever = "" if best.batch_size is not None else ", whatever the batches"
        taken = str(best) if best.batch_size is not None or best.method != rival.method else _only(best)
        gain = f"{by.show(difference, True)} {by.name}{interval}"
        return f"Take {taken}: {gain} against {rival.family}{whatever}.", evidence
    losses, parts, standing = 0, [], chosen.choices
    ties: list[list[str]] = [[]]  # names of measures that told nothing, before the first loss and after each one
    for measure, left in zip(measures, chosen.left, strict=False):
        gone = {choice.family for choice in standing} - {choice.family for choice in left}
        gone |= _dropped(sweep, chosen, measure)
        if measure is by:
            break
        if len(left) == len(standing) and not gone:
            ties[-1].append(measure.name)
        else:
            parts += _tie(ties[-1], losses, _samples(sweep))
            losses += 1
            ties.append([])
            lost = _listed(sorted(gone)) if gone else f"some batch sizes of {_listed(sorted(_shrunk(standing, left)))}"
            parts.append(f"by {measure.name} {lost} {'loses' if len(gone) == 1 else 'lose'}")
        standing = left
    last = "is nearest to FP32" if by.decibels else "is best"
    if _tied_with(chosen) and len(chosen.left[-1]) == len(chosen.choices) and not by.decibels:
        ties[-1].append(by.name)
        last = "has the best mean"
    parts += _tie(ties[-1], losses, _samples(sweep))
    rest = " of the others" if losses and not ties[-1] else ""
    parts.append(f"by {by.name}{rest} {best} {last} ({_figures(chosen, studied, by)})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}.", evidence


def _tie(names: Sequence[str], losses: int, samples: int) -> list[str]:
    """Measures that tell nothing apart, after so many that did -> words for it."""
    who = "none of the others loses" if losses else "no method loses"
    return [f"{who} {' or '.join(names)} against another that {samples} samples can show"] if names else []


def _early(sweep: Sweep, chosen: Chosen) -> dict[str, str]:
    """Methods of which no trial saw all samples -> why the race dropped them."""
    left = {choice.method for choice in chosen.choices}
    found: dict[str, str] = {}
    for trial in sweep.trials:
        if trial.method not in left and trial.dropped is not None and trial.dropped.startswith("worse than "):
            found.setdefault(trial.method, trial.dropped)
    return found


def _gone_early(sweep: Sweep, chosen: Chosen) -> list[str]:
    early = [f"{name}, {reason}" for name, reason in _early(sweep, chosen).items()]
    return [f"The race dropped {'; '.join(early)}."] if early else []


def _dropped(sweep: Sweep, chosen: Chosen, measure: Measure) -> set[str]:
    """Methods that the race dropped by this measure, before they saw all samples."""
    return {name for name, reason in _early(sweep, chosen).items() if f" by {measure.name}: " in reason}


def _only(best: Choice) -> str:
    return best.family.removeprefix(f"{best.method} on ")


def _decisive(chosen: Chosen) -> Measure:
    """The measure by which the last other method fell; the last one looked at where some never did, or are none."""
    standing = {choice.group for choice in chosen.choices}
    decided = chosen.measures[len(chosen.left) - 1]
    for measure, left in zip(chosen.measures, chosen.left, strict=False):
        groups = {choice.group for choice in left}
        if groups != standing:
            decided = measure
        standing = groups
    return chosen.measures[-1] if len(standing) > 1 else decided


def _tied_with(chosen: Chosen) -> list[Choice]:
    """Choices of other methods that no measure tells from the best."""
    return [choice for choice in chosen.left[-1] if choice.group != chosen.best.group]


def _shrunk(before: Sequence[Choice], after: Sequence[Choice]) -> set[str]:
    return {choice.family for choice in before if choice not in after}


def _stood(chosen: Chosen, choice: Choice) -> int:
    """For how many measures?"""
    return sum(choice in left for left in chosen.left)


def _others(chosen: Chosen, by: Measure) -> list[Choice]:
    """Of each other method the choice that stood longest and is best by the measure."""
    groups: dict[tuple[str, str | None], list[Choice]] = {}
    for choice in chosen.choices:
        groups.setdefault(choice.group, []).append(choice)
    return [
        max(group, key=lambda choice: (_stood(chosen, choice), chosen.value(choice, by)))
        for name, group in groups.items()
        if name != chosen.best.group
    ]


def _rival(chosen: Chosen, studied: Sequence[Trial], by: Measure) -> Choice:
    """What the best is set against: of those that stood longest the method studied, or else the best one."""
    others = _others(chosen, by)
    longest = max(_stood(chosen, choice) for choice in others)
    stood = [choice for choice in others if _stood(chosen, choice) == longest]
    ours = [choice for choice in stood if _studied(choice, studied)]
    return ours[0] if ours else max(stood, key=lambda choice: chosen.value(choice, by))


def _figures(chosen: Chosen, studied: Sequence[Trial], by: Measure) -> str:
    """The best's number, and that of its rival, by arrangement where it has several."""
    rival = _rival(chosen, studied, by)
    group = [choice for choice in chosen.choices if choice.group == rival.group]
    trials = studied if _studied(rival, studied) else [trial for choice in group for trial in choice.usual]
    values = by.scale(np.array([values.mean() for trial in trials if (values := by.of(trial)) is not None]))
    low, high = by.show(float(values.min())), by.show(float(values.max()))
    unit = " dB" if by.decibels else ""
    spread = high if low == high else f"{low.removesuffix(unit)} to {high} by arrangement"
    return f"{by.show(chosen.value(chosen.best, by))}; {rival.family} {spread}"


def _against_others(chosen: Chosen, by: Measure) -> list[str]:
    """The best beside each other method, by the measure that told it from the best, or by the last one."""
    best, sentences = chosen.best, []
    for number, measure in enumerate(chosen.measures[: chosen.measures.index(by) + 1]):
        others = [
            choice
            for choice in _others(chosen, measure)
            if _stood(chosen, choice) == number or (measure is by and _stood(chosen, choice) > number)
        ]
        if not others:
            continue
        told = []
        for other in sorted(others, key=lambda other: -chosen.value(other, measure))[:NAMED]:
            difference, low, high = chosen.difference(other, best, measure)
            if difference == low == high == 0:
                told.append(f"{other} the same")
                continue
            interval = "" if measure.single else f", {measure.interval(low, high)}"
            shown = measure.show(chosen.value(other, measure))
            told.append(f"{other} {shown} ({measure.show(difference, True)}{interval})")
        more = f", and {len(others) - NAMED} more" if len(others) > NAMED else ""
        value = measure.show(chosen.value(best, measure))
        sentences.append(f"By {measure.name}: {best} {value}; {', '.join(told)}{more}.")
    tied = [str(choice) for choice in _tied_with(chosen)]
    if tied:
        sentences.append(f"No measure tells {best} from {_listed(tied, NAMED)}; of these its mean is the best.")
    return sentences


def _listed(names: Sequence[str], most: int | None = None) -> str:
    """Names -> "a, b and c"; of many the first, and how many more there are."""
    shown = list(names) if most is None or len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


# --- batch sizes and orders


class _Batches(NamedTuple):
    """The smallest batch size as good as the best, the one to take, the one with the best mean; whether order matters,
    in words too; and sentences.
    """

    size: int | None = None
    best: int | None = None
    top: int | None = None  # by the mean of the measure that tells sizes apart
    order_matters: bool | None = None
    order: str = ""
    sentences: Sequence[str] = ()


def _of_batches(
    sweep: Sweep,
    studied: Sequence[Trial],
    measures: Sequence[Measure],
    chosen: Chosen | None,
) -> _Batches:
    """What the trials of the method studied say of batch sizes and orders."""
    if not studied:
        return _Batches()
    paired = [measure for measure in measures if not measure.single]
    ours = [choice for choice in choices(sweep) if _studied(choice, studied)]
    within = choose(ours, measures)
    if not paired or within is None:
        size, matters, sentences = _by_thresholds(sweep, studied)
        taken = size if within is None else within.best.batch_size
        return _Batches(size, taken, taken, matters, _ORDER[matters], sentences)
    best = chosen.best if chosen is not None and _studied(chosen.best, studied) else within.best
    judged = [trial for trial in whole_trials(sweep) if any(trial is one for one in studied)]
    deciding = next((measure for measure in paired if compared(ours, measure).below.any()), paired[0])
    size, top, sentences = _smallest(ours, best, deciding)
    matters, order, said = _order_effect([*judged, *_of_dropped_sizes(studied, judged, paired)], paired)
    sentences += [*said, *_largest_first(judged, ours, size, deciding)]
    return _Batches(size, best.batch_size, top, matters, order, sentences)


def _batches_headline(name: str, found: _Batches, chosen: Chosen | None, *, alone: bool) -> str:
    """The headline's sentence about batches; of the method studied ``alone`` where none is said before it."""
    size, best = found.size, found.best
    if chosen is None or found.best is None:
        text = f"From batches of {size} on half of the thresholds stay within 1% of the batch-invariant ones"
        if size is None:
            text = "No batch size keeps the thresholds near the batch-invariant ones"
    elif size is None or size == best:
        text = f"{f'Calibrate {name} with' if alone else f'With {name}, take'} batches of {best}"
    elif best == found.top:
        text = f"With {name}, batches of {best} did best, those of {size} may be as good"
    else:
        text = f"With {name}, take batches of {best}; those of {size} may be as good"
    return f"{text}; {found.order}."


def _paired(one: np.ndarray, two: np.ndarray, measure: Measure) -> tuple[float, float, float]:
    """Two sets of trials on the same samples -> the difference of their means, with its interval."""
    first, second = measure.scale(means([one, two]))
    low, high = np.quantile(first - second, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return _mean(one, measure) - _mean(two, measure), float(low), float(high)


def _mean(values: np.ndarray, measure: Measure) -> float:
    return float(measure.scale(values.mean(keepdims=True)).reshape(-1)[0])


def _smallest(ours: Sequence[Choice], taken: Choice, measure: Measure) -> tuple[int, int, list[str]]:
    """The smallest batch size that cannot be told from the best, never a larger one than is taken; the best mean's; and
    sentences.
    """
    values = {choice.batch_size or 0: matrix(choice.usual, measure) for choice in ours}
    sizes = sorted(values)
    best = max(sizes, key=lambda size: _mean(values[size], measure))
    shown = {size: measure.show(_mean(values[size], measure)) for size in sizes}
    sentences: list[str] = []
    chosen, worse = best, []
    for size in sizes:
        if size == best:
            break
        found, low, high = _paired(values[size], values[best], measure)
        difference = f"{measure.show(found, True)}, {measure.interval(low, high)}"
        if high >= 0 or -found < measure.least(0):
            chosen = size
            verdict = "cannot be told from none" if high >= 0 else "is small"
            sentences.append(
                f"Batches of {size} give {shown[size]} {measure.name}, of {best} the best, {shown[best]}; the "
                f"difference ({difference}) {verdict}."
            )
            break
        worse.append(f"{size} ({difference})")
    if worse:
        sentences.insert(
            0, f"Batches of {best} give {shown[best]} {measure.name}; worse are batches of {', '.join(worse)}."
        )
    return min(chosen, taken.batch_size or chosen), best, sentences


def _largest_first(judged: Sequence[Trial], ours: Sequence[Choice], chosen: int, measure: Measure) -> list[str]:
    """Whether the largest samples in front repair the smallest batches, where these need it."""
    least = min(ours, key=lambda choice: choice.batch_size or 0)
    at = [t.configuration.order == "largest-first" and t.configuration.batch_size == least.batch_size for t in judged]
    first = matrix([trial for trial, there in zip(judged, at, strict=True) if there], measure)
    if not len(first) or chosen == least.batch_size:
        return []
    difference, low, high = _paired(first, matrix(least.usual, measure), measure)
    verdict = "repairs" if low > 0 else "does not repair"
    return [
        f"Putting the largest samples first {verdict} batches of {least.batch_size} "
        f"({measure.show(difference, True)}, {measure.interval(low, high)})."
    ]


def _of_dropped_sizes(studied: Sequence[Trial], whole: Sequence[Trial], measures: Sequence[Measure]) -> list[Trial]:
    """Trials at batch sizes that a few samples were enough to drop: these tell orders of one size apart as well."""
    found = []
    for size in {t.configuration.batch_size for t in studied} - {t.configuration.batch_size for t in whole}:
        trials = [t for t in studied if t.configuration.batch_size == size and t.judgement is not None]
        lengths = {None if (of := measure.of(t)) is None else of.size for t in trials for measure in measures}
        if len(lengths) == 1 and None not in lengths:
            found += trials
    return found


def _order_effect(judged: Sequence[Trial], measures: Sequence[Measure]) -> tuple[bool | None, str, list[str]]:
    """Whether the order matters, by the first measure that shows it, in words, and the largest effect that it has."""
    sizes = sorted({trial.configuration.batch_size for trial in judged})
    at = {size: [trial for trial in judged if trial.configuration.batch_size == size] for size in sizes}
    pairs = sum(len(trials) - 1 for trials in at.values())
    if not pairs:
        return None, _ORDER[None], []
    for measure in measures:
        sentence = _largest_effect(at, pairs, measure)
        if sentence:
            words = _ORDER[True] if measure is measures[0] else f"{_ORDER[True]} to {measure.name} alone"
            return True, words, [sentence]
    return False, _ORDER[False], ["No two orders can be told apart at any batch size."]


def _largest_effect(at: Mapping[int, Sequence[Trial]], pairs: int, measure: Measure) -> str:
    """The largest effect by one measure, "" for none; intervals widened for having looked at so many pairs."""
    largest, sentence = -measure.least(0), ""
    tails = [0.025 / pairs, 1 - 0.025 / pairs]
    values = {size: matrix(trials, measure) for size, trials in at.items()}
    drawn: dict[int, np.ndarray] = {}
    for samples in {part.shape[1] for part in values.values()}:
        alike = [size for size, part in values.items() if part.shape[1] == samples]
        rows = [row[None] for size in alike for row in values[size]]
        found = means(rows, ORDER_RESAMPLES)  # all at once: most of the time goes into drawing
        drawn |= dict(zip(alike, np.split(found, np.cumsum([len(at[size]) for size in alike])[:-1]), strict=True))
    for size, trials in at.items():
        shown, resampled = measure.scale(values[size].mean(axis=1)), measure.scale(drawn[size])
        top = int(shown.argmax())
        low, high = np.quantile(resampled - resampled[top], tails, axis=1)
        for row, trial in enumerate(trials):
            difference = float(shown[row] - shown[top])
            if difference < largest and high[row] < 0:
                largest = difference
                sentence = (
                    f"Order matters most with batches of {size}: {_name(trial)} loses {measure.show(-difference)} "
                    f"{measure.name} against {_name(trials[top])} "
                    f"({measure.interval(float(low[row]), float(high[row]))})"
                    f"{f' on {values[size].shape[1]} samples' if trial.dropped else ''}."
                )
    return sentence


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


# --- samples and the control


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
