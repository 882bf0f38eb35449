"""Does it matter which samples share a run? One small run tells, before a pass begins.

A pass runs samples one by one, so it has to know what one is: which axis of each input counts them. Where the file
does not say so for sure, and as a check where it does, some samples are run together and then singly. Of each tensor
the largest |x|, the number of elements, their sum and that of their squares are compared: those of the run together
must be those of the single runs together, or else a range would depend on who shared the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, islice, product
from typing import Any, NamedTuple

import numpy as np

from trtcal.errors import ModelError
from trtcal.files.brief import few
from trtcal.model.batch_axis import Size, batch_axes, fed_values, sizes_of
from trtcal.model.nodes import op_name, reads
from trtcal.model.open import Model, single_rows
from trtcal.model.runner import OrtRunner
from trtcal.passes.collect import as_float32
from trtcal.ranges.histogram import abs_max
from trtcal.samples.batches import Batches, Samples, load_batches
from trtcal.samples.streams import batches_of

logger = logging.getLogger(__name__)

TOLERANCE = 5e-3  # relative; kernels for other batch sizes add up in another order
MOST_BYTES = 256 << 20  # of the tensors of a run together: of a larger one, some are compared
MOST_TRIED = 32  # ways to choose the axes
MOST_TOGETHER = 64  # samples in one run, where nobody says that an axis counts them
SHOWN = 3  # names in a message

# What they answer has as many rows as the data have something to find, of all samples one after the other.
DATA_SHAPED = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress", "Loop", "Scan", "SequenceAt"})

Row = Mapping[str, np.ndarray]
"""One sample, ``{input: (1, ...)}``."""


def resolved(model: Model, batches: Iterable[Any], *, must_run: bool = True, judged: bool = False) -> Model:
    """Model and the batches of a pass -> the model fed so that a range belongs to a sample, whoever shares its run.

    The axes that the file tells are taken where the run confirms them, else the first others that it confirms. A
    warning names tensors that depend on who shares a run where the axes are certain: the user said them, or the file's
    names do. ModelError where they are not, naming the options that decide; where a batch size is built into the graph
    and copies of a sample would not do in the place of others; and where the model does not run at all, of which there
    is but a warning unless it ``must_run`` here.

    Where the model is ``judged``, it runs batches as they are, and nothing but its outputs counts.
    """
    if must_run and not judged:  # a GPU may know all operators
        model.tell(judged=False)
    if model.feeding.resolved:
        return model
    if judged and not model.by_rows and isinstance(batches, Batches) and model.batch_size == batches.batch_size:
        return model  # it runs as its file says
    try:
        return _Settling(model, rows_of(model, batches), judged).settle()
    except _CannotRunError as error:
        if judged:
            return model  # whoever runs it will say what is wrong
        if must_run:
            raise ModelError(str(error)) from error
        logger.warning("whether ranges depend on which samples share a run is not known: %s", error)
        return replace(model, feeding=replace(model.feeding, resolved=True))


def peeked(model: Model, batches: Iterable[Any], *, must_run: bool = True) -> tuple[Model, Iterable[Any]]:
    """As :func:`resolved`, for batches that may be an iterator -> the model, and the batches with none of them lost."""
    if not isinstance(batches, Iterator) or model.feeding.resolved:
        return resolved(model, batches, must_run=must_run), batches
    first = list(islice(batches, 1))
    return (resolved(model, first, must_run=must_run) if first else model), chain(first, batches)


def with_copies(model: Model, row: Row) -> Model:
    """A model with a batch size, and a sample -> the model fed with batches of copies of each sample.

    ModelError where a range would not be that of the sample then.
    """
    settling = _Settling(model, [row], judged=False)
    verdict = settling.copies(model, settling.distinct(model.batch_size or 1, model))
    if verdict.mixed:
        raise settling.refuse_copies(verdict.mixed)
    return _done(verdict.model)


def rows_of(model: Model, batches: Iterable[Any]) -> list[Row]:
    """Some of the first samples: two, or as many as share a run at the file's own batch size."""
    wanted = max(2, model.batch_size or 0)
    if isinstance(batches, Batches) and isinstance(batches.source, Samples):
        numbers: dict[int, None] = {}
        for group, valid in batches.groups():
            numbers.update(dict.fromkeys(group[:valid]))
            if len(numbers) >= wanted:
                break
        return [dict(batch) for batch in load_batches(batches.source, (([n], 1) for n in islice(numbers, wanted)))]
    found: list[Row] = []
    for batch in batches if isinstance(batches, Batches) else batches_of(batches, model.inputs):
        found += islice(single_rows(batch), batch.valid)
        if len(found) >= wanted:
            break
    return found[:wanted]


class _Sums(NamedTuple):
    """What is compared of a tensor: number of elements, largest |x|, their sum and that of their squares."""

    number: float
    largest: float
    total: float
    squares: float

    @classmethod
    def of(cls, values: np.ndarray, copies: int = 1) -> _Sums:
        flat = as_float32(values).reshape(-1)
        with np.errstate(all="ignore"):  # what overflows or is no number is so in both
            return cls(
                flat.size / copies, abs_max(flat), float(flat.sum()) / copies, float(np.vdot(flat, flat)) / copies
            )

    def plus(self, other: _Sums) -> _Sums:
        """Of two samples."""
        largest = np.maximum(self.largest, other.largest)  # or nan
        return _Sums(self.number + other.number, float(largest), self.total + other.total, self.squares + other.squares)

    def is_as(self, other: _Sums) -> bool:
        """Are they the same but for rounding?"""
        if self.number != other.number:
            return False
        spread = math.sqrt(self.number) * math.sqrt(other.squares) if other.squares >= 0 else math.nan
        return (
            _close(self.largest, other.largest, other.largest)
            and _close(self.total, other.total, spread)
            and _close(self.squares, other.squares, other.squares)
        )


def _close(one: float, two: float, scale: float) -> bool:
    if not (math.isfinite(one) and math.isfinite(two)):
        return one == two or (math.isnan(one) and math.isnan(two))
    return not math.isfinite(scale) or abs(one - two) <= TOLERANCE * scale


@dataclass
class _Verdict:
    """A way to feed the model, and the tensors that depend on who shares a run; None: none ran together."""

    model: Model
    mixed: list[str] | None


class _CannotRunError(Exception):
    """The model does not run on the samples, together or singly."""


class _Settling:
    def __init__(self, model: Model, rows: Sequence[Row], judged: bool) -> None:
        self.model, self.judged = model, judged
        self.axes = batch_axes(model.proto)
        self.rows = list(rows)

    def settle(self) -> Model:
        model = self.model
        if not self.rows or (not self._shares(model) and self._fit(model)):
            return _done(model)
        try:
            first = self._verdict(model)
        except ModelError as error:
            if not self._fit(model) and (found := self._first_of(self._others())) is not None:
                logger.warning("%s: %s", model.name, self._found(found, "by what the file says, no sample would fit"))
                return _done(found)
            raise _CannotRunError(str(error)) from error
        if not first.mixed:
            return _done(first.model)
        if (found := self._first_of(filter(self._shares, self._others()))) is not None:
            why = f"with axis 0, {_some(first.mixed)} would depend on which samples share a run"
            logger.warning("%s: %s", model.name, self._found(found, why))
            return _done(found)
        if first.model.feeding.copies > 1:
            raise self.refuse_copies(first.mixed)
        if not self._uncertain() or set(first.mixed) <= _data_shaped(model):
            logger.warning(
                "%s: %s on which samples share a run; samples run one by one, and ranges are those of that",
                model.name, _depend(first.mixed),
            )  # fmt: skip
            return _done(first.model)
        if self.judged and model.batch_size is not None:
            raise ModelError(
                f"{model.name}: has batch size {model.batch_size} built in; use batches of {model.batch_size} "
                f"({_some(first.mixed)} would be another with other batches); or {_options(self._uncertain())}"
            )
        raise ModelError(
            f"{model.name}: {_some(first.mixed)} would depend on which samples share a run, with the first axis of "
            f"{', '.join(self._uncertain())} counting them; {_options(self._uncertain())}"
        )

    def _first_of(self, models: Iterable[Model]) -> Model | None:
        """The first that runs, and whose tensors do not depend on who shares a run."""
        for model in models:
            try:
                verdict = self._verdict(model)
            except ModelError:
                continue
            if verdict.mixed == []:
                return verdict.model
        return None

    def _fit(self, model: Model) -> bool:
        """Do the samples have the shapes that they should have?"""
        row = self.rows[0]
        return all(_fits(row[spec.name].shape[1:], spec.shape) for spec in model.inputs if spec.name in row)

    def refuse_copies(self, mixed: Sequence[str]) -> ModelError:
        """What depends on who shares a run -> why copies of a sample would not do."""
        model = self.model
        return ModelError(
            f"{model.name}: its batch size {model.batch_size} is built into the graph, and {_depend(mixed)} on "
            f"which samples share a run, so that copies of one sample cannot stand for the others; export the model "
            f"with a dynamic batch axis, or {_options(self._uncertain() or [model.inputs[0].name])}"
        )

    def _uncertain(self) -> list[str]:
        """Inputs of which neither the user nor the file says which axis counts samples."""
        asked = self.model.feeding.asked
        return [spec.name for spec in self.model.inputs if spec.name not in asked and not self.axes[spec.name].certain]

    def _shares(self, model: Model) -> bool:
        """Could samples share a run at all?"""
        return any(spec.axis is not None and spec.count != 1 for spec in model.inputs)

    def _others(self) -> Iterator[Model]:
        """The model with other axes, as far as the samples fit them."""
        values = fed_values(self.model.proto)
        choices: list[list[int | None]] = []
        for spec in self.model.inputs:
            shape = self.rows[0][spec.name].shape[1:]
            sizes = sizes_of(values[spec.name])
            fitting = [axis for axis in range(len(sizes)) if _fits(shape, sizes[:axis] + sizes[axis + 1 :])]
            fitting = [axis for axis in fitting if not isinstance(n := sizes[axis], int) or n <= MOST_TOGETHER]
            others = [axis for axis in fitting if axis != spec.axis and len(shape) == len(sizes) - 1]
            choices.append([spec.axis, *(others if spec.name in self._uncertain() else [])])
        for axes in islice(product(*choices), 1, MOST_TRIED):
            named = {spec.name: axis for spec, axis in zip(self.model.inputs, axes, strict=True)}
            feeding = replace(self.model.feeding, axes={**self.model.feeding.axes, **named})
            yield replace(self.model, feeding=feeding)

    def _verdict(self, model: Model) -> _Verdict:
        """Run samples singly and together, fed so -> what depends on who shares a run."""
        size = max((spec.count or 0 for spec in model.inputs if spec.axis is not None), default=0)
        if size <= 1:  # some input leaves it open; there may be others that are one for all
            rows = self.distinct(2, model)
            with _Shown(model, 2, self.judged) as runner:
                singles = runner.sums(rows)
                try:
                    return _Verdict(model, _mixed(runner.together(rows), singles))
                except ModelError as error:
                    logger.debug("%s: no two samples share a run: %s", model.name, error)
                    return _Verdict(model, None)
        rows = self.distinct(size, model)
        try:
            with _Shown(model.with_batch_size(1), size, self.judged) as runner:
                singles, names = runner.sums(rows), runner.names
        except ModelError as error:
            if self.judged:
                raise
            try:
                return self.copies(model, rows)
            except ModelError:  # nor does it run with its own batch size
                raise error from None
        with _Shown(model, size, self.judged, names) as runner:
            verdict = _Verdict(model, _mixed(runner.together(rows), singles))
        if verdict.mixed and not self.judged:
            filled = self.copies(model, rows)
            return verdict if filled.mixed else filled
        return verdict

    def copies(self, model: Model, rows: list[Row]) -> _Verdict:
        """A batch size that is built into the graph: would copies of a sample do?"""
        assert model.batch_size is not None
        filled = replace(model, feeding=replace(model.feeding, copies=model.batch_size))
        with _Shown(filled, model.batch_size, self.judged) as runner:
            singles = runner.sums(rows, model.batch_size)
            verdict = _Verdict(filled, _mixed(runner.together(rows), singles))
        if not verdict.mixed:
            logger.warning(
                "%s: its batch size %d is built into the graph; running each sample as a batch of %d copies",
                model.name, model.batch_size, model.batch_size,
            )  # fmt: skip
        return verdict

    def distinct(self, number: int, model: Model) -> list[Row]:
        """So many samples of one shape that differ; where there are fewer, the first with its values moved about.

        Inputs that are whole are the first sample's, since no two can be in one run.
        """
        first = self.rows[0]
        whole = {spec.name for spec in model.inputs if spec.axis is None or spec.count == 1}
        found: list[Row] = []
        for row in self.rows:
            if all(row[name].shape == array.shape for name, array in first.items()):
                found.append({name: first[name] if name in whole else array for name, array in row.items()})
        seen = {_content(row) for row in found}
        found = found if len(seen) == len(found) else found[:1]
        step = 1
        while len(found) < number:
            moved = {
                name: array if name in whole else np.roll(array.reshape(-1), step).reshape(array.shape)
                for name, array in first.items()
            }
            step += 1
            found.append(moved)
        return found[:number]

    def _found(self, other: Model, why: str) -> str:
        """Other axes than those of the file, and what is wrong with these -> what to tell the user."""
        changed = [
            (spec.name, spec.axis)
            for spec, before in zip(other.inputs, self.model.inputs, strict=True)
            if spec.axis != before.axis
        ]
        axes = ", ".join(f"axis {axis} of {name}" for name, axis in changed)
        options = " ".join(f"--batch-axis {name}={axis}" for name, axis in changed)
        s = "s" if len(changed) == 1 else ""
        return f"{axes} count{s} samples, as a run of some of them shows: {why}; {options} say{s} so"


class _Shown:
    """The FP32 model with the tensors that are compared; each run gives their sums.

    Those are the outputs alone (``judged``), the ``names``, or else all: of a run of so many samples ``together``, as
    many as there is room for.
    """

    def __init__(self, model: Model, together: int, judged: bool, names: Sequence[str] | None = None) -> None:
        self._model, self._together = model, together
        proto = model.reached(model.proto) if judged else model.calibrated.model
        shown = (value.name for value in proto.graph.output) if judged else model.calibrated.visible
        self._runner = OrtRunner(proto, threads=1, folder=model.folder, name=model.name, libraries=model.libraries)
        inputs = {value.name for value in model.proto.graph.input}
        self._all = self._runner.floats(name for name in shown if name not in inputs)
        self.names = None if names is None else tuple(names)

    def sums(self, rows: Iterable[Row], copies: int = 1) -> list[dict[str, _Sums]]:
        """Samples, each run by itself, or as a batch of its copies -> what is compared of their tensors."""
        found = []
        for row in rows:
            answer = self._run({name: np.repeat(array, copies, axis=0) for name, array in row.items()})
            found.append({name: _Sums.of(answer.pop(name), copies) for name in list(answer)})
        return found

    def together(self, rows: Sequence[Row]) -> dict[str, _Sums]:
        """Samples that share a run -> what is compared of its tensors."""
        answer = self._run({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
        return {name: _Sums.of(answer.pop(name)) for name in list(answer)}

    def _run(self, rows: Row) -> dict[str, np.ndarray]:
        whole = {spec.name for spec in self._model.inputs if spec.axis is None or spec.count == 1}
        fed = self._model.fed({name: array[:1] if name in whole else array for name, array in rows.items()})
        self._runner.outputs = self._all if self.names is None else self.names
        answer = self._runner(fed)
        if self.names is None:
            # All, or some spread over the graph, the last one among them.
            size = sum(array.nbytes for array in answer.values()) * self._together
            step = -(-size // MOST_BYTES) or 1
            self.names = self._all[::-1][::step][::-1]
        return {name: answer[name] for name in self.names}

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()


def _mixed(together: Mapping[str, _Sums], singles: Sequence[Mapping[str, _Sums]]) -> list[str]:
    """Sums of a run of some samples together, and of each alone -> the tensors that are not the samples' own."""
    mixed = []
    for name, found in together.items():
        own = [sums[name] for sums in singles]
        constant = all(found.is_as(sums) for sums in own)
        if not constant and not found.is_as(reduce(_Sums.plus, own)):
            mixed.append(name)
    return mixed


def _data_shaped(model: Model) -> set[str]:
    """Tensors that come of nodes whose answer has as many rows as there is something to find."""
    found: set[str] = set()
    for node in model.proto.graph.node:
        if op_name(node) in DATA_SHAPED or not found.isdisjoint(reads(node)):
            found.update(node.output)
    return found


def _done(model: Model) -> Model:
    return replace(model, feeding=replace(model.feeding, resolved=True))


def _fits(shape: Sequence[int], sizes: Sequence[Size]) -> bool:
    return len(shape) == len(sizes) and all(
        not isinstance(want, int) or want == size for size, want in zip(shape, sizes, strict=True)
    )


def _content(row: Row) -> tuple[bytes, ...]:
    return tuple(array.tobytes() for array in row.values())


def _some(names: Sequence[str]) -> str:
    return few([repr(name) for name in names], SHOWN)


def _depend(names: Sequence[str]) -> str:
    return f"{_some(names)} {'depends' if len(names) == 1 else 'depend'}"


def _options(names: Sequence[str]) -> str:
    """Inputs -> how to say which of their axes counts samples."""
    name = names[0]
    return (
        f"say which axis counts samples: --batch-axis {name}=0 if the first does all the same, {name}=1 if the second "
        f"does, {name}=none if a sample is one whole input"
    )
