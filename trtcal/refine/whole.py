"""A float model -> one whose weights and biases survive INT8 better, judged as a whole.

Weights of single layers improve in nearly every variant while a model gets worse, so the whole model decides: variants
are compared on samples held back from everything else, and what does not help is not done.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import DataError, ModelError
from trtcal.files.brief import brief
from trtcal.judging.accuracy import TOP1, Labels, Score, difference, evaluate, score_of
from trtcal.judging.evaluation import for_metric
from trtcal.judging.metrics import Metric
from trtcal.model.calibrated import with_outputs
from trtcal.model.nodes import copied, op_name
from trtcal.model.open import Model, Source, open_model
from trtcal.model.runner import Optimization, OrtRunner
from trtcal.model.topology import MOVES_VALUES, WEIGHTED, Graph
from trtcal.passes.ordered import in_order
from trtcal.passes.sharing import resolved
from trtcal.qdq.insert import check_int8, insert_qdq
from trtcal.qdq.placement import layer_name
from trtcal.refine.biases import Bias, channel_means, correctable, shifts, with_biases
from trtcal.refine.layers import Weights, refinable
from trtcal.refine.moments import grouped, moments
from trtcal.refine.rounding import compensated, nearest
from trtcal.samples.batches import Batch, Batches
from trtcal.samples.streams import batches_of
from trtcal.spec import InputSpec

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

MEMORY = 2 << 30  # bytes of second moments, and of tensors between two layers, at a time
BIAS_SAMPLES = 32  # means settle sooner than second moments
WORKERS = os.cpu_count() or 1  # samples at once; results do not depend on it
LEAST = 8  # samples in all
HELD_BACK = 4  # every so manieth sample judges,
MOST_JUDGES = 48  # up to so many
PARTS = 3  # of the layers, in order, that can be refined or not each
SQUEEZES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_JUDGED: Optimization = "extended"  # faster, and equal to the arithmetic as written to about 3e-6
MOST_DB = 120.0  # no two float32 computations of one model are nearer

Sample = Mapping[str, np.ndarray]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerChange:
    """One weight tensor: who reads it first, its SQNR in dB as INT8, and whether the result holds other weights.

    ``before``: FP32's weights on the nearest step; ``after``: those of the result, against FP32's. Compensation trades
    the error of the weights for that of the output, so ``after`` is the lower one where a layer was refined.
    """

    weights: str
    layer: str
    before: float
    after: float
    refined: bool


class Scored(NamedTuple):
    """A metric of the FP32 model, of the original and the refined one as INT8, and what changed between these two.

    ``change`` is of the paired samples; None where the metric gives one number for all of them.
    """

    fp32: Score
    before: Score
    after: Score
    change: Score | None


@dataclass(frozen=True, eq=False)
class Refinement:
    """A refined model and what it gains.

    ``model`` is the original where nothing helped (``improved`` is False). ``before`` and ``after`` are the INT8
    model's SQNR in dB against FP32 by sample, of the samples that neither calibrated nor chose; ``change`` is the mean
    of the paired differences. ``activations``: the same with weights in FP32, which no refinement of weights can pass
    by much.
    ``variants`` has what was compared, on the samples that chose: name -> mean change in dB with its interval.
    ``scores`` has metrics by name, on the same samples as ``before`` and ``after``; empty without labels.
    """

    model: ModelProto
    improved: bool
    chosen: str
    before: Score
    after: Score
    change: Score
    activations: Score
    variants: Mapping[str, Score]
    layers: tuple[LayerChange, ...]
    left: Mapping[str, str]
    biases: int
    samples: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, Scored] = field(default_factory=dict)

    __repr__ = brief


class Singles:
    """Batches -> their samples, (1, ...) each, as often as they are gone through; padding is left out.

    With a ``model`` they are fed as it takes them: see `Model.fed`.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        inputs: Sequence[InputSpec],
        numbers: Collection[int] | None = None,
        model: Model | None = None,
    ) -> None:
        self._batches, self._inputs, self._numbers, self._model = batches, inputs, numbers, model
        self._length: int | None = None if numbers is None else len(numbers)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        number = 0
        batches = self._batches if isinstance(self._batches, Batches) else batches_of(self._batches, self._inputs)
        for batch in batches:
            for row in range(getattr(batch, "valid", len(next(iter(batch.values()))))):
                if self._numbers is None or number in self._numbers:
                    sample = {name: np.asarray(array)[row : row + 1] for name, array in batch.items()}
                    yield sample if self._model is None else self._model.fed(sample)
                number += 1

    def __len__(self) -> int:
        if self._length is None:
            self._length = self._batches.num_samples if isinstance(self._batches, Batches) else sum(1 for _ in self)
        return self._length

    def part(self, numbers: Iterable[int], model: Model | None = None) -> Singles:
        """Those of these numbers, fed as the model takes them where one is given."""
        return Singles(self._batches, self._inputs, frozenset(numbers), model)


def held_back(number: int) -> tuple[list[int], list[int], list[int]]:
    """So many samples -> the numbers of those to refine on, to choose by, and to report on.

    Every fourth is held back, 48 at most, spread over all; they choose and report in turn. DataError for fewer than 8.
    """
    if number < LEAST:
        raise DataError(f"refining needs {LEAST} samples or more, got {number}: some are held back to judge by")
    judges = list(range(HELD_BACK - 1, number, HELD_BACK))
    judges = (
        [judges[i * len(judges) // MOST_JUDGES] for i in range(MOST_JUDGES)] if len(judges) > MOST_JUDGES else judges
    )
    taken = set(judges)
    return [i for i in range(number) if i not in taken], judges[::2], judges[1::2]


def refine(
    model: Source,
    batches: Iterable[Any],
    *,
    scales: Mapping[str, np.float32] | None = None,
    method: str = "mse",
    placement: str = "all",
    transposed: bool = False,
    memory: int = MEMORY,
    labels: Labels | None = None,
    metrics: Mapping[str, Metric] = TOP1,
    kept: Mapping[str, np.ndarray] | None = None,
    keep: Callable[[Mapping[str, np.ndarray]], None] = lambda rows: None,
    progress: Progress = lambda stage, done, total: None,
) -> Refinement:
    """Float model and batches ``{input: (N, ...)}`` -> the model with weights and biases that survive INT8 better.

    Batches are gone through several times; every fourth sample, 48 at most, is held back: half of these choose among
    the variants, the other half says what was gained. ``scales`` are the activations' (amax / 127) by tensor; without,
    the samples to refine on are calibrated by ``method``. ``placement`` is one of
    :data:`trtcal.qdq.placement.PLACEMENTS`. ``transposed`` refines ConvTranspose as well, for a Q/DQ model. ``memory``:
    bytes of second moments, and of tensors between two layers, that are held at a time. With ``labels``, of all
    samples, the ``metrics`` are reported as well; they choose nothing. ``kept`` has refined weights of an interrupted
    run, and ``keep`` is given those of this one after each group of layers.

    Raises ModelError where the model has nothing to refine, or nothing of it becomes INT8; DataError where there are
    fewer than 8 samples, or one that reports has no label.
    """
    given = open_model(model)
    labels = for_metric(given, labels, asked=True)
    opened, libraries = resolved(given.for_judging(), batches), given.libraries
    every = Singles(batches, opened.inputs)
    on, choosing, reporting = held_back(len(every))
    truth = None if labels is None else _labels_of(reporting, labels, batches)
    if scales is None:
        scales = calibrate(opened, [Batch(sample) for sample in every.part(on)], method).cache.scales
    single = opened.with_batch_size(1).whole
    parts = every.part(on, opened), list(every.part(choosing, opened)), list(every.part(reporting, opened))
    made, *int8 = _refined(
        single, scales, placement, *parts, transposed, memory, dict(kept or {}), keep, progress, libraries
    )
    scores = {} if truth is None else _scores([single, *int8], parts[2], truth, metrics, libraries)
    lost = [node for node in given.proto.graph.node if op_name(node) in WEIGHTED]
    tensors = given.unknown.tensors
    left = {layer_name(node): given.unknown.why(node.output[0]) for node in lost if node.output[0] in tensors}
    whole = _transplanted(single, made.model, given.whole)
    return replace(made, model=whole, scores=scores, left={**made.left, **left})


def _labels_of(numbers: Sequence[int], labels: Labels, batches: Iterable[Any]) -> list[Any]:
    """Numbers of samples -> their labels; DataError for a sample without one."""
    if isinstance(labels, Mapping):
        names = batches.sample_names if isinstance(batches, Batches) else [str(i) for i in range(max(numbers) + 1)]
        missing = [names[number] for number in numbers if names[number] not in labels]
        if missing:
            raise DataError(f"sample {missing[0]} has no label ({len(labels)} samples have one)")
        return [labels[names[number]] for number in numbers]
    if len(labels) <= max(numbers):
        raise DataError(f"there are {len(labels)} labels, and more samples")
    return [labels[number] for number in numbers]


def _scores(
    models: Sequence[ModelProto],
    samples: Sequence[Sample],
    truth: Sequence[Any],
    metrics: Mapping[str, Metric],
    libraries: Sequence[Path],
) -> dict[str, Scored]:
    """The FP32 model, the original and the refined one as INT8, samples and their labels -> what each metric says."""
    found = []
    for model in models:
        with OrtRunner(model, optimization=_JUDGED, libraries=libraries) as runner:
            found.append(evaluate(runner, samples, truth, metrics).scores)
    fp32, before, after = found
    return {
        name: Scored(fp32[name], before[name], score, difference(before[name], score) if score.values.size else None)
        for name, score in after.items()
    }


def _refined(
    model: ModelProto,
    scales: Mapping[str, np.float32],
    placement: str,
    samples: Singles,
    choose: Sequence[Sample],
    report: Sequence[Sample],
    transposed: bool,
    memory: int,
    rows: dict[str, np.ndarray],
    keep: Callable[[Mapping[str, np.ndarray]], None],
    progress: Progress,
    libraries: Sequence[Path],
) -> tuple[Refinement, ModelProto, ModelProto]:
    """What was found, and the original and the refined model as INT8."""
    graph = Graph(model)
    weights, left = refinable(graph, transposed=transposed)
    if not weights:
        why = next(iter(left.values()), "no layer of it has constant weights")
        raise ModelError(f"the model has no weights to refine: {why}")
    places = correctable(graph)
    _round_all(model, graph, weights, samples, memory, rows, keep, progress, libraries)

    few = _spread(samples, min(BIAS_SAMPLES, _that_fit(model, choose[0], memory, libraries)))
    expected = _means(model, places, few, libraries)
    judge = Judge(model, choose, libraries)
    parts = [part.tolist() for part in np.array_split(np.arange(len(weights)), min(PARTS, len(weights)))]
    measured: dict[str, Score] = {}

    def as_int8(variant: ModelProto) -> ModelProto:
        result = insert_qdq(open_model(variant, libraries=libraries), scales, placement=placement)
        check_int8(result.layers, result.skipped, "the model")
        return result.model

    def attempt(name: str, refined: Iterable[int], corrected: bool) -> _Variant:
        variant = _with_weights(model, [weights[number] for number in refined], rows)
        int8 = as_int8(variant)
        if corrected:
            found = shifts(int8, places, expected, few, WORKERS, libraries)
            variant = with_biases(variant, places, found)
            int8 = as_int8(variant)
        measured[name] = score_of(judge.sqnr_db(int8))
        progress("judging", len(measured), 4 + len(parts))
        gain = difference(measured["original"], measured[name]).low
        return _Variant(name, corrected, variant, int8, measured[name].value, gain)

    every = list(range(len(weights)))
    original = attempt("original", [], False)
    best = _sure(original, attempt("biases", [], True))
    weights_alone = attempt("weights", every, False)
    whole = _better(weights_alone, attempt("weights and biases", every, True))
    promising = _better(best, whole) is whole
    best = _sure(best, whole)
    if promising and len(parts) > 1:
        # Which part to leave out is asked without biases, whose correction takes longer than all judging.
        likely, others = weights_alone, every
        for number, part in enumerate(parts, 1):
            rest = [index for index in every if index not in part]
            tried = attempt(f"weights, but for part {number} of {len(parts)}", rest, False)
            best = _sure(best, tried)
            if _better(likely, tried) is tried:
                likely, others = tried, rest
        if whole.corrected and likely is not weights_alone:
            best = _sure(best, attempt(likely.name.replace("weights", whole.name), others, True))
    start = measured.pop(original.name)
    variants = {name: difference(start, score) for name, score in measured.items()}

    judge = Judge(model, report, libraries)
    before = after = score_of(judge.sqnr_db(original.int8))
    if best is not original:
        after = score_of(judge.sqnr_db(best.int8))
        if difference(before, after).high < 0:  # what chose was luck
            best, after = original, before
    found = Refinement(
        best.model,
        best is not original,
        best.name,
        before,
        after,
        difference(before, after),
        score_of(judge.sqnr_db(_float_weights(original.int8))),
        variants,
        _changes(graph, weights, best.model),
        left,
        len(places) if best.corrected else 0,
        {"refined on": len(samples), "biases": len(few), "chosen on": len(choose), "reported on": len(report)},
    )
    return found, original.int8, best.int8


class _Variant(NamedTuple):
    """A float model with some changes, as Q/DQ model, and its INT8 SQNR in dB on the samples that choose."""

    name: str
    corrected: bool  # its biases
    model: ModelProto
    int8: ModelProto
    sqnr_db: float
    least_gain: float  # dB over the original, the lower end of the interval


def _better(one: _Variant, other: _Variant) -> _Variant:
    """The one that is nearer to FP32; of equal ones the first, which changes less."""
    return other if other.sqnr_db > one.sqnr_db else one


def _sure(best: _Variant, other: _Variant) -> _Variant:
    """The other one where it is nearer to FP32 and certainly gains over the original: a few samples choose by luck."""
    return other if other.least_gain > 0 and _better(best, other) is other else best


class Judge:
    """A float model for single samples, and samples -> how far other models are from it there."""

    def __init__(self, model: ModelProto, samples: Sequence[Sample], libraries: Sequence[Path] = ()) -> None:
        self._tensors, self._samples, self._libraries = tuple(_compared(Graph(model))), samples, libraries
        self._expected = self._answers(model)

    def sqnr_db(self, model: ModelProto) -> np.ndarray:
        """Model, such as a Q/DQ one -> its SQNR in dB by sample, the mean over the tensors that are compared."""
        return np.array(
            [
                np.mean([_sqnr_db(expected[name], answer[name]) for name in self._tensors])
                for expected, answer in zip(self._expected, self._answers(model), strict=True)
            ]
        )

    def _answers(self, model: ModelProto) -> list[dict[str, np.ndarray]]:
        with _opened(model, self._tensors, self._libraries, _JUDGED) as runner:
            return list(in_order(runner, self._samples, WORKERS))


def _opened(
    model: ModelProto, names: Iterable[str], libraries: Sequence[Path], optimization: Optimization = "disabled"
) -> OrtRunner:
    """Model and names of its tensors -> a runner that shows them; several samples run at once, one thread each."""
    names = list(names)
    shown = with_outputs(model, names)
    return OrtRunner(shown, outputs=names, optimization=optimization, threads=1, libraries=libraries)


def _sqnr_db(expected: np.ndarray, found: np.ndarray) -> float:
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    power, noise = float(np.square(expected).sum()), float(np.square(expected - found).sum())
    if power == 0:
        return MOST_DB if noise == 0 else 0.0
    return min(MOST_DB, 10 * math.log10(power / noise)) if noise else MOST_DB


def _compared(graph: Graph) -> list[str]:
    """The tensors to compare: float outputs that layers with weights reach, taken before Softmax and Sigmoid.

    Behind these an error of the logits is squeezed to nothing or blown up, as the sample has it.
    """
    reached: set[str] = set()
    for node in graph.nodes:
        if any(name in reached for name in node.input) or (
            op_name(node) in ("Conv", "ConvTranspose", "Gemm", "MatMul") and not graph.fixed.issuperset(node.output)
        ):
            reached.update(node.output)
    found = []
    for value in graph.model.graph.output:
        name = value.name
        while (index := graph.producer.get(name)) is not None and (
            op_name(graph.nodes[index]) in SQUEEZES or op_name(graph.nodes[index]) in MOVES_VALUES
        ):
            name = graph.nodes[index].input[0]
        if name in reached and graph.dtype(name) == np.float32:
            found.append(name)
    if not found:
        raise ModelError("no float output of the model depends on a layer with weights")
    return list(dict.fromkeys(found))


def _round_all(
    model: ModelProto,
    graph: Graph,
    weights: Sequence[Weights],
    samples: Singles,
    memory: int,
    rows: dict[str, np.ndarray],
    keep: Callable[[Mapping[str, np.ndarray]], None],
    progress: Progress,
    libraries: Sequence[Path],
) -> None:
    """Weights -> ``rows`` has each of them rounded with compensation, group by group."""
    rest = [each for each in weights if each.name not in rows]
    groups = list(grouped(rest, memory))
    done = 0
    for group in groups:
        fed = {value.name for value in model.graph.input}
        shown = sorted({reader.source for each in group for reader in each.readers} - fed)
        with _opened(model, shown, libraries) as runner:
            answers = in_order(lambda sample, run=runner: {**sample, **run(sample)}, samples, WORKERS)  # type: ignore[misc]

            def counted(answers: Iterable[Sample] = answers) -> Iterator[Sample]:
                nonlocal done
                for answer in answers:
                    yield answer
                    done += 1
                    progress("second moments", done, len(groups) * len(samples))

            found = moments(counted(), len(samples), group)
        for each in group:
            progress("rounding", len(rows) + 1, len(weights))
            rows[each.name] = compensated(each.to_rows(graph.array(each.name)), found.pop(each.name))
        keep(rows)


def _with_weights(model: ModelProto, refined: Iterable[Weights], rows: Mapping[str, np.ndarray]) -> ModelProto:
    """Model -> a copy with these weights rounded."""
    from onnx import numpy_helper

    values = {each.name: each.from_rows(rows[each.name]) for each in refined}
    model = copied(model)
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    for node in model.graph.node:
        if op_name(node) == "Constant" and node.output[0] in values:
            attribute = next(a for a in node.attribute if a.name == "value")
            attribute.t.CopyFrom(numpy_helper.from_array(values[node.output[0]], attribute.t.name))
    return model


def _means(
    model: ModelProto, places: Sequence[Bias], samples: Sequence[Sample], libraries: Sequence[Path] = ()
) -> dict[str, np.ndarray]:
    """FP32's mean of each channel of the tensors whose biases can be changed."""
    if not places:
        return {}
    names = [place.tensor for place in places]
    totals: dict[str, np.ndarray] = {}
    with _opened(model, names, libraries) as runner:
        for answer in in_order(runner, samples, WORKERS):
            for place in places:
                mean = channel_means([answer[place.tensor]], place.channel)
                totals[place.tensor] = totals.get(place.tensor, np.zeros_like(mean)) + mean
    return {name: total / len(samples) for name, total in totals.items()}


def _that_fit(model: ModelProto, sample: Sample, memory: int, libraries: Sequence[Path] = ()) -> int:
    """How many samples' tensors between two layers fit: as many as those of one at its widest cut allow, 1 at least."""
    graph = Graph(model)
    names = [name for node in graph.nodes for name in node.output if name and name not in graph.fixed]
    shown = with_outputs(model, names)
    with OrtRunner(shown, libraries=libraries) as runner:
        runner.outputs = runner.floats(names)
        sizes = {name: array.nbytes for name, array in runner(sample).items()}
    last_read = {name: max(readers) for name, readers in graph.readers.items()}
    alive, widest = 0, 1
    ends: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in node.output:
            if name in sizes and name in last_read:
                alive += sizes[name]
                ends[last_read[name]] = ends.get(last_read[name], 0) + sizes[name]
        widest = max(widest, alive)
        alive -= ends.pop(index, 0)
    return max(1, memory // (2 * widest))  # beside Q and DQ of the same tensors


def _spread(samples: Singles, most: int) -> list[Sample]:
    """So many samples at most, spread over all."""
    wanted = {i * len(samples) // most for i in range(most)} if len(samples) > most else range(len(samples))
    return [sample for number, sample in enumerate(samples) if number in wanted]


def _transplanted(single: ModelProto, refined: ModelProto, whole: ModelProto) -> ModelProto:
    """What refining changed in a model for single samples -> changed in a copy of the model as it was."""
    before = {tensor.name: tensor.SerializeToString() for tensor in single.graph.initializer}
    changed = {t.name: t for t in refined.graph.initializer if before.get(t.name) != t.SerializeToString()}
    nodes = {node.output[0]: node for node in refined.graph.node if node.output}
    made = copied(whole)
    for tensor in made.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(changed.pop(tensor.name))
    made.graph.initializer.extend(changed.values())
    for node in made.graph.node:
        other = nodes.get(node.output[0]) if node.output else None
        if other is None:
            continue
        if op_name(node) == "Constant":
            node.CopyFrom(other)
        elif len(other.input) == 3 and other.input[2] in changed:  # a bias that was not there
            del node.input[:]
            node.input.extend(other.input)
    return made


def _float_weights(int8: ModelProto) -> ModelProto:
    """Q/DQ model -> a copy in which weights are read as they are, and activations as INT8."""
    graph = Graph(int8)
    constants = {
        graph.nodes[graph.producer[node.input[0]]].input[0]: node.output[0]
        for node in graph.nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in graph.producer
    }
    back = {output: name for name, output in constants.items() if name in graph.constants}
    model = copied(int8)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = back.get(name, name)
    return model


def _changes(graph: Graph, weights: Sequence[Weights], chosen: ModelProto) -> tuple[LayerChange, ...]:
    after = Graph(chosen)
    rows = []
    for each in weights:
        old, new = each.to_rows(graph.array(each.name)), each.to_rows(after.array(each.name))
        refined = not np.array_equal(old, new)
        noise = float(np.square(old.astype(np.float64) - nearest(new)).sum())
        power = float(np.square(old.astype(np.float64)).sum())
        before = float(np.square(old.astype(np.float64) - nearest(old)).sum())
        rows.append(LayerChange(each.name, each.layer, _db(power, before), _db(power, noise), refined))
    return tuple(rows)


def _db(power: float, noise: float) -> float:
    return 10 * math.log10(power / noise) if noise else math.inf
