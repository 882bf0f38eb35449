"""Sources that are run through from the start: loader scripts, and iterables such as a torch DataLoader."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np

from trtcal.errors import DataError, TrtcalError
from trtcal.files.scripts import load_function
from trtcal.samples.batches import LABELS, Batch, Sample
from trtcal.samples.conform import conform, fits
from trtcal.spec import InputSpec


def batches_of(feeds: Iterable[Any], inputs: Sequence[InputSpec]) -> Iterator[Batch]:
    """Any iterable of feeds, as IterableSource takes them -> each as a Batch; what is one passes as it is.

    Unlike a source it may be an iterator, since it is run through once. Raises DataError as IterableSource does.
    """
    where = f"samples of a {type(feeds).__name__}"
    for number, feed in enumerate(feeds):
        if isinstance(feed, Batch):
            yield feed
        else:
            samples = _samples(feed, inputs, where, number)
            arrays = {name: np.stack([sample.arrays[name] for sample in samples]) for name in samples[0].arrays}
            yield Batch(arrays, samples=[sample.name for sample in samples])


class IterableSource:
    """Re-iterable of feeds -> stream of samples; a torch DataLoader will do.

    A feed is ``{input: array}``, every array with a batch axis. Where the model has one input,
    ``array`` and ``(array, labels)`` will do, too. Tensors count as arrays. Labels are integers of
    shape ``(N,)``, second in a pair or under ``labels`` or ``label``; anything else there is no
    class label and is left out.

    Raises TypeError for iterators, which end once and for all, and while iterating DataError for
    feeds that do not fit and for whatever the iterable itself raises.
    """

    has_own_batches = True  # which somebody meant, and which are not regrouped unsaid

    def __init__(self, iterable: Iterable[Any], *, inputs: Sequence[InputSpec]) -> None:
        if isinstance(iterable, Iterator):
            raise TypeError(
                f"{type(iterable).__name__} can be iterated once only; pass what it was made from, a list, "
                "or an object whose __iter__ starts anew"
            )
        if not isinstance(iterable, Iterable):
            raise TypeError(f"{type(iterable).__name__} cannot be iterated")
        self._iterable, self._inputs = iterable, tuple(inputs)

    def blocks(self) -> Iterator[list[Sample]]:
        """Nothing -> the samples of each feed."""
        return _blocks(lambda: self._iterable, self._inputs, self.describe())

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return f"samples of a {type(self._iterable).__name__}"


class LoaderScript:
    """``script.py[:function]`` -> stream of samples, from the feeds that the function returns or yields.

    The function, ``load_data`` unless named, is called without arguments for every iteration. Its
    feeds are those of IterableSource. It is the user's own code and may do anything; it
    is imported once, with its folder importable for that time.

    Raises DataError where the script cannot be imported or lacks the function, and for whatever
    it raises.
    """

    has_own_batches = True

    def __init__(self, spec: str | os.PathLike[str], *, inputs: Sequence[InputSpec]) -> None:
        self._spec, self._inputs = os.fspath(spec), tuple(inputs)
        self._function = load_function(self._spec, default="load_data")

    def blocks(self) -> Iterator[list[Sample]]:
        """Nothing -> the samples of each feed, from a new call of the function."""
        return _blocks(self._function, self._inputs, self.describe())

    def describe(self) -> str:
        """Nothing -> one line for people."""
        return self._spec


def _blocks(start: Callable[[], Iterable[Any]], inputs: Sequence[InputSpec], where: str) -> Iterator[list[Sample]]:
    with _users_code(f"{where}: batch 0"):
        feeds = iter(start())
    for number in count():
        with _users_code(f"{where}: batch {number}"):
            try:
                feed = next(feeds)
            except StopIteration:
                return
        yield _samples(feed, inputs, where, number)


@contextmanager
def _users_code(at: str) -> Iterator[None]:
    """A block that may raise anything, StopIteration where nothing ends included -> DataError that says where."""
    try:
        yield
    except TrtcalError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"{at} raised {type(error).__name__}: {error}") from error


def _samples(feed: object, inputs: Sequence[InputSpec], where: str, number: int) -> list[Sample]:
    """One feed -> its samples."""
    at = f"{where}: batch {number}"
    names = {spec.name for spec in inputs}
    labels: object = None
    if isinstance(feed, Mapping):
        with _users_code(at):
            values = dict(feed)
        for key in LABELS:
            if key not in names:
                labels = values.pop(key, labels)
    else:
        if len(inputs) != 1:
            raise DataError(
                f"{at}: a {type(feed).__name__}, the model takes {', '.join(map(repr, sorted(names)))}: "
                "give dicts of input name to array"
            )
        value: object = feed
        if isinstance(feed, (tuple, list)):
            if len(feed) not in (1, 2):
                raise DataError(f"{at}: a {type(feed).__name__} of {len(feed)}, expected (array, labels)")
            value, labels = feed[0], feed[1] if len(feed) == 2 else None
        values = {inputs[0].name: value}
    arrays = {name: _array(value, f"{at}, input {name!r}") for name, value in values.items()}
    for spec in inputs:
        if spec.name in arrays:
            arrays[spec.name] = _rows(arrays[spec.name], spec, f"{at}, input {spec.name!r}")
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise DataError(f"{at}: batch axes of length {lengths or 'nothing'}; give at least one row, of every input")
    size = next(iter(lengths.values()))
    rows = [f"batch {number} row {row}" for row in range(size)]
    classes = _classes(labels, size)
    return [
        Sample(name, _conformed({key: a[row] for key, a in arrays.items()}, inputs, name, where), classes[row])
        for row, name in enumerate(rows)
    ]


def _rows(array: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """What a feed gives an input -> its samples, on the first axis."""
    if spec.axis is None:
        return spec.rows(array)
    if fits(array.shape, spec):
        place = "in front of" if spec.axis == 0 else "in"
        raise DataError(f"{where}: no batch axis {place} {spec}; give array[{', '.join([':'] * spec.axis + ['None'])}]")
    return spec.rows(array) if array.ndim > spec.axis else array


def _conformed(
    feed: Mapping[str, np.ndarray], inputs: Sequence[InputSpec], name: str, where: str
) -> dict[str, np.ndarray]:
    return conform(feed, inputs, f"{where}: {name}")


def _array(value: object, where: str) -> np.ndarray:
    """Array, tensor or nested lists -> array."""
    try:
        if hasattr(value, "detach"):  # a torch tensor, perhaps on a GPU
            value = value.detach().cpu()
        return np.asarray(value)
    except Exception as error:
        raise DataError(f"{where}: a {type(value).__name__} that is no array ({error}); convert it") from error


def _classes(labels: object, size: int) -> list[int | None]:
    try:
        array = np.asarray(None) if labels is None else _array(labels, "labels")
    except DataError:
        array = np.asarray(None)
    if array.shape == (size,) and array.dtype.kind in "iu":
        return [int(label) for label in array]
    return [None] * size
