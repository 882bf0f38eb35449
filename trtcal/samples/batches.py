"""Samples become batches: what a source is, how its arrays are checked, how they are ordered and grouped.

The sources themselves are in ``trtcal.samples.sources``.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, islice
from typing import Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np

from trtcal.errors import DataError, TrtcalError
from trtcal.files.brief import few
from trtcal.samples.spread import spread

logger = logging.getLogger(__name__)

Order = Literal["given", "sorted", "shuffled"]
Partial = Literal["pad", "wrap", "drop", "error"]
ORDERS: tuple[str, ...] = get_args(Order)
PARTIALS: tuple[str, ...] = get_args(Partial)
LABELS = ("labels", "label")  # what the classes are called beside the inputs

T = TypeVar("T")

_LOOK_AHEAD = 2  # batches decoded while the caller works on one
_MIX = 0.1  # shares of a class that differ by more are worth a word


class Batch(dict[str, np.ndarray]):
    """Input name -> array whose first axis holds N rows.

    ``samples`` names each row; rows from ``valid`` on repeat other samples to fill the batch up.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        samples: Sequence[str] | None = None,
        valid: int | None = None,
    ) -> None:
        super().__init__(arrays)
        sizes = {array.shape[0] if array.ndim else 0 for array in self.values()}
        if len(sizes) != 1:
            raise ValueError(f"a batch needs arrays of one length, got {sorted(sizes)}")
        size = sizes.pop()
        self.samples = tuple(samples) if samples is not None else tuple(str(row) for row in range(size))
        self.valid = size if valid is None else valid
        if len(self.samples) != size or not 0 <= self.valid <= size:
            raise ValueError(f"{size} rows have {len(self.samples)} names and {self.valid} valid rows")


@runtime_checkable
class Samples(Protocol):
    """A source with random access: any sample by its number, from any thread."""

    def __len__(self) -> int:
        """Nothing -> number of samples."""

    def load(self, index: int) -> dict[str, np.ndarray]:
        """Number of a sample -> input name to array, without batch axis."""

    def name(self, index: int) -> str:
        """Number of a sample -> its name, the same wherever the data lie."""

    def label(self, index: int) -> int | None:
        """Number of a sample -> its class, None if unknown."""

    def key(self, indices: Sequence[int] | None = None) -> str:
        """Numbers of samples (all of them if None) -> SHA-256 of their names and contents, in this order."""

    def describe(self) -> str:
        """Nothing -> one line for people."""


class Sample(NamedTuple):
    """One sample of a stream: arrays without batch axis."""

    name: str
    arrays: dict[str, np.ndarray]
    label: int | None


@runtime_checkable
class Stream(Protocol):
    """A source that can only be run through from its start, again and again."""

    def blocks(self) -> Iterator[list[Sample]]:
        """Nothing -> the samples, in the groups in which the stream brings them."""

    def describe(self) -> str:
        """Nothing -> one line for people."""


@dataclass(frozen=True)
class Accounting:
    """How many samples there are, and what became of them."""

    available: int  # of a stream cut short: as many as were asked for
    used: int
    batches: int
    batch_size: int
    padded: int  # rows of the last batch that repeat other samples
    dropped: int  # samples of an incomplete last batch that was left out
    chosen: str = ""  # how a part of them was, in words
    size_from: str = ""  # where the batch size comes from that nobody asked for
    regrouped: str = ""  # which batches of the source were not kept

    def __str__(self) -> str:
        of = f"{self.used} of {self.available}" if self.used != self.available else f"{self.used}"
        how = f", {self.chosen}" if self.chosen else ""
        text = f"{of} samples{how}: {self.batches} {'batch' if self.batches == 1 else 'batches'} of {self.batch_size}"
        text += f", {self.size_from}" if self.size_from else ""
        text += f", regrouped from {self.regrouped}" if self.regrouped else ""
        if self.padded:
            text += f", last one padded with {self.padded} repeat{'s' if self.padded > 1 else ''}"
        if self.dropped:
            text += f", {self.dropped} left over and dropped"
        return text


class Batches:
    """Source -> re-iterable of Batch; every iteration yields the same.

    ``order``: ``given`` by the source, ``sorted`` by the bytes of the names, ``shuffled`` by
    ``numpy.random.default_rng(seed).permutation``, or a sequence of sample numbers. ``samples``
    takes so many of that order, spread over it and over the classes (`trtcal.samples.spread.spread`),
    and keeps their order; of a stream, which may be endless, the first. ``partial`` says what becomes
    of a last batch that is not full: ``pad`` repeats its last sample, ``wrap`` takes samples from the
    beginning of the order, ``drop`` leaves it out, ``error`` refuses.

    ``labels``, sample to class, takes precedence over what the source says of classes. ``size_from`` says in words
    where a batch size comes from that nobody asked for.

    A stream has only its own order. ``batch_size=None`` keeps a stream's own batches, and then
    ``partial`` has nothing to do.

    Raises DataError where samples cannot be used, naming the sample; while iterating, at the batch
    the sample belongs to. Samples with random access are decoded ahead in threads; these end with
    the iteration, however it ends.
    """

    def __init__(
        self,
        source: Samples | Stream,
        batch_size: int | None,
        *,
        order: Order | Sequence[int] = "given",
        seed: int = 0,
        samples: int | None = None,
        partial: Partial = "pad",
        labels: Mapping[str, int | str] | None = None,
        size_from: str = "",
    ) -> None:
        if not isinstance(source, (Samples, Stream)):
            raise TypeError(f"{type(source).__name__} is no source; wrap it in trtcal.samples.sources.IterableSource")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if partial not in PARTIALS:
            raise ValueError(f"partial is one of {', '.join(PARTIALS)}; got {partial!r}")
        self.source = source
        self._size, self._limit, self.partial, self._labels = batch_size, samples, partial, labels
        self.order = order if isinstance(order, str) else "explicit"
        self.seed = seed if self.order == "shuffled" else None  # no other order draws random numbers
        self._stream_length: int | None = None
        self._chosen, self._size_from = "", size_from
        self.mix: str | None = None
        """Where a part of the samples has other shares of classes than all: of which class, in words."""
        if isinstance(source, Samples):
            if batch_size is None:
                raise ValueError("batch_size=None keeps a stream's batches; this source has single samples")
            self._order = _ordered(source, order, seed)
            if samples is not None and samples > len(self._order):
                logger.warning("%d samples asked for, %d there", samples, len(self._order))
            if samples is not None:
                whole = self._order
                self._take(samples)
                _warn_of_few_classes({self._class(i) for i in whole}, {self._class(i) for i in self._order}, samples)
            _refuse_partial(source, len(self._order), batch_size, partial)
        elif self.order != "given":
            wanted = "taken by sample numbers" if self.order == "explicit" else self.order
            raise DataError(
                f"{source.describe()}: a stream comes in its own order and cannot be {wanted}; "
                "order it where it is made, or save its samples as .npz files"
            )

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.source, Samples):
            return load_batches(self.source, self.groups())
        return self._streamed(self.source)

    def __len__(self) -> int:
        return self.accounting().batches

    @property
    def batch_size(self) -> int:
        """Rows of a batch; of a stream that keeps its own batches, of the largest."""
        return self._size if self._size is not None else max(self._survey.sizes)

    @property
    def num_samples(self) -> int:
        """Samples used, repeats not counted."""
        return self.accounting().used

    @property
    def sample_names(self) -> tuple[str, ...]:
        """Names of the samples used, in their order."""
        used = self.num_samples
        if isinstance(self.source, Samples):
            return tuple(self.source.name(index) for index in self._order[:used])
        return self._survey.names[:used]

    @property
    def labels(self) -> tuple[int, ...] | None:
        """Classes of the samples used, in their order; None unless all are known."""
        used = self.num_samples
        labels: Sequence[int | str | None]
        if isinstance(self.source, Samples):
            labels = [self._class(index) for index in self._order[:used]]
        elif self._labels is not None:
            labels = [self._labels.get(name) for name in self._survey.names[:used]]
        else:
            labels = self._survey.labels[:used]
        known = tuple(label for label in labels if isinstance(label, int))
        return known if len(known) == used else None

    def key(self) -> str:
        """Nothing -> SHA-256 (hex) of the names and contents of the samples used.

        Reads the data once. An order that has a name leaves no trace in it, an explicit one does, and the
        batch size none but for samples dropped.
        """
        used = self.num_samples
        if isinstance(self.source, Samples):
            chosen = self._order[:used]
            return self.source.key(chosen if self.order == "explicit" else sorted(chosen))
        return key_of(self._survey.digests[:used])

    def labelled(self, labels: Mapping[str, int | str]) -> Batches:
        """Sample to class -> the same batches with these classes."""
        made = copy.copy(self)
        made._labels = labels
        return made

    def in_batches_of(self, size: int) -> Batches:
        """A number -> the same samples in batches of so many; the last one is padded."""
        made = self.part(self.num_samples) if self.partial == "drop" else copy.copy(self)
        made._size, made._size_from, made.partial = size, "", "pad"
        return made

    def part(self, samples: int) -> Batches:
        """A number -> batches of so many of these samples, chosen as ``samples`` are; the last batch is padded."""
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        made = copy.copy(self)
        made.partial = "pad"
        if isinstance(self.source, Samples):
            made._order = self._order[: self.num_samples]
            made._take(samples)
        else:
            made._limit = samples if self._limit is None else min(samples, self._limit)
            made._stream_length = None
            made.__dict__.pop("_survey", None)
        return made

    def only(self, places: Sequence[int], *, partial: Partial | None = None) -> Batches:
        """Places in the order of these samples -> batches of the samples there alone, in the order of the places."""
        if not isinstance(self.source, Samples):
            raise TypeError(f"{self.source.describe()}: the samples of a stream have no places")
        made = copy.copy(self)
        made._order, made._chosen, made.mix = [self._order[place] for place in places], "", None
        made.partial = partial or self.partial
        return made

    def others(self) -> Batches | None:
        """The samples of the source that are not among these, the last batch padded; None where there are none.

        Nor are there any that a stream could tell.
        """
        if not isinstance(self.source, Samples):
            return None
        used = set(self._order[: self.num_samples])
        made = copy.copy(self)
        made._order = [number for number in range(len(self.source)) if number not in used]
        made.partial, made._chosen, made.mix = "pad", "", None
        return made if made._order else None

    def first_spread(self, samples: int) -> tuple[Batches, list[int]]:
        """A number -> the same samples in another order, and their places in this one.

        The first ``samples``, twice as many, and so on are spread over all of them and over their classes, as far as
        whole batches go: a look at the first few batches is one at all of them. A stream keeps its order.
        """
        if not isinstance(self.source, Samples):
            return self, list(range(self.num_samples))
        assert self._size is not None
        rest, places = list(range(self.num_samples)), list[int]()
        count = -(-samples // self._size) * self._size
        while rest:
            taken = spread([self._class(self._order[place]) for place in rest], count)
            places += [rest[at] for at in taken]
            gone = set(taken)
            rest = [place for at, place in enumerate(rest) if at not in gone]
            count = len(places)
        made = copy.copy(self)
        made._order = [self._order[place] for place in places]
        return made, places

    def _take(self, samples: int) -> None:
        """Keep so many of the samples, spread over their order and classes."""
        if samples >= len(self._order):
            return
        classes = [self._class(index) for index in self._order]
        places = spread(classes, samples)
        there, taken = Counter(classes), Counter(classes[place] for place in places)
        if there.keys() != {None}:
            self._chosen = f"spread over {len(there)} class{'es' if len(there) > 1 else ''}"
        elif self.order != "shuffled":
            self._chosen = "evenly spaced"
        now, before = ({one: count[one] / count.total() for one in there} for count in (taken, there))
        most = max(there, key=lambda one: abs(now[one] - before[one]))
        if abs(now[most] - before[most]) > _MIX:
            self.mix = f"{now[most]:.0%} of them are of class {most}, of all samples {before[most]:.0%}"
        self._order = [self._order[place] for place in places]

    def _class(self, index: int) -> int | str | None:
        assert isinstance(self.source, Samples)
        return self.source.label(index) if self._labels is None else self._labels.get(self.source.name(index))

    def groups(self) -> Iterator[tuple[list[int], int]]:
        """Nothing -> the sample numbers of each batch, and how many of its rows are no padding; TypeError for a stream.

        Together with the source, what :func:`load_batches` needs to make some of the batches elsewhere.
        """
        if not isinstance(self.source, Samples):
            raise TypeError(f"{self.source.describe()}: the samples of a stream have no numbers")
        assert self._size is not None
        return _grouped(self._order, self._size, self.partial)

    def accounting(self) -> Accounting:
        """Nothing -> what becomes of the samples. A stream is run through once to count them."""
        if isinstance(self.source, Samples):
            available, chosen = len(self.source), len(self._order)
        else:
            available = chosen = len(self._survey.names)
        how = "the first of a stream" if chosen == self._limit and isinstance(self.source, Stream) else self._chosen
        said = {"chosen": how, "size_from": self._size_from, "regrouped": self._regrouped()}
        if self._size is None:
            return Accounting(available, chosen, len(self._survey.sizes), self.batch_size, 0, 0, **said)
        full, rest = divmod(chosen, self._size)
        if rest == 0 or self.partial == "drop":
            return Accounting(available, chosen - rest, full, self._size, 0, rest, **said)
        return Accounting(available, chosen, full + 1, self._size, self._size - rest, 0, **said)

    def _regrouped(self) -> str:
        """Which batches a user's own stream gives, where others are made of them; in words."""
        if self._size is None or not getattr(self.source, "has_own_batches", False):
            return ""
        *sizes, last = self._survey.sizes or (0,)
        if last <= self._size and all(size == self._size for size in sizes):
            return ""
        least, most = min(sizes, default=last), max(sizes, default=last)
        return f"batches of {most}" if least == most else f"batches of {least} to {most}"

    # --- streams

    def _streamed(self, source: Stream) -> Iterator[Batch]:
        count = 0
        if self._size is None:
            for block in self._blocks(source):
                count += len(block)
                yield _stacked(block, len(block))
        else:
            counted = _Counted(chain.from_iterable(self._blocks(source)))
            for rows, valid in _grouped(counted, self._size, self.partial):
                yield _stacked(rows, valid)
            count = counted.count
        if self._stream_length not in (None, count):
            raise DataError(
                f"{source.describe()}: {self._stream_length} samples the first time, {count} now; "
                "calibration needs a loader that starts anew for every iteration"
            )
        _refuse_partial(source, count, self._size or 1, self.partial)
        self._stream_length = count

    def _blocks(self, source: Stream) -> Iterator[list[Sample]]:
        """Stream -> its blocks, cut after the number of samples asked for; after a survey, the same samples again."""
        left = self._limit
        survey: _Survey | None = self.__dict__.get("_survey")
        seen = 0
        for block in source.blocks():
            block = block if left is None else block[:left]
            for name, arrays, _ in block:
                if survey and seen < len(survey.digests) and sample_digest(name, arrays) != survey.digests[seen]:
                    raise DataError(
                        f"{source.describe()}: {name} is not what it was the first time; calibration needs a loader "
                        "that gives the same samples whenever it starts: fix its seed, or do not shuffle"
                    )
                seen += 1
            yield block
            if left is not None:
                left -= len(block)
                if left <= 0:
                    return

    @cached_property
    def _survey(self) -> _Survey:
        """One run through a stream, keeping everything but the arrays."""
        assert isinstance(self.source, Stream)
        names: list[str] = []
        labels: list[int | None] = []
        digests: list[str] = []
        sizes: list[int] = []
        for block in self._blocks(self.source):
            sizes.append(len(block))
            for name, arrays, label in block:
                names.append(name)
                labels.append(label)
                digests.append(sample_digest(name, arrays))
        self._stream_length = len(names)
        _refuse_partial(self.source, len(names), self._size or 1, self.partial)
        return _Survey(tuple(names), tuple(labels), tuple(digests), tuple(sizes))


def load_batches(
    source: Samples, groups: Iterable[tuple[Sequence[int], int]], workers: int | None = None
) -> Iterator[Batch]:
    """Sample numbers of each batch, as :meth:`Batches.groups` has them -> the batches, decoded ahead in threads."""
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="trtcal-decode")
    ahead: deque[tuple[Sequence[int], int, dict[int, Future[Sample]]]] = deque()
    try:
        for rows, valid in groups:
            ahead.append((rows, valid, {i: pool.submit(_load, source, i) for i in dict.fromkeys(rows)}))
            if len(ahead) > _LOOK_AHEAD:
                yield _finished(*ahead.popleft())
        while ahead:
            yield _finished(*ahead.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def declared_length(batches: object) -> int | None:
    """Batches -> how many they say they are; None where they do not tell, as torch's loaders of streams."""
    if not isinstance(batches, Sized):
        return None
    try:
        return len(batches)
    except Exception:
        return None


def sample_digest(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """One sample -> SHA-256 (hex) of its name and its arrays."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape"))
    for key in sorted(arrays):
        array = arrays[key]
        digest.update(f"\0{key}\0{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def key_of(digests: Iterable[str]) -> str:
    """Digests of samples -> SHA-256 (hex) of all, in their order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class _Survey(NamedTuple):
    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    digests: tuple[str, ...]
    sizes: tuple[int, ...]  # of the stream's own batches


class _Counted(Iterator[T]):
    """Iterable -> the same, counted."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items, self.count = iter(items), 0

    def __next__(self) -> T:
        item = next(self.items)
        self.count += 1
        return item


def _warn_of_few_classes(every: set[int | str | None], some: set[int | str | None], samples: int) -> None:
    """Of more classes than samples, some can have none."""
    every, some = every - {None}, some - {None}
    if every and 2 * len(some) <= len(every):
        noun = "sample is" if samples == 1 else "samples are"
        logger.warning("%d %s of %d of %d classes; more would be of more", samples, noun, len(some), len(every))


def _ordered(source: Samples, order: Order | Sequence[int], seed: int) -> list[int]:
    available = len(source)
    if not isinstance(order, str):
        chosen = [int(index) for index in order]
        if not chosen or min(chosen) < 0 or max(chosen) >= available:
            given = few([str(index) for index in chosen], 5)
            raise ValueError(f"order must name samples 0..{available - 1}, got {given or 'none'}")
        return chosen
    if order == "sorted":
        return sorted(range(available), key=lambda index: source.name(index).encode("utf-8", "surrogateescape"))
    if order == "shuffled":
        return [int(index) for index in np.random.default_rng(seed).permutation(available)]
    if order != "given":
        raise ValueError(f"order is one of {', '.join(ORDERS)}, or a sequence of numbers; got {order!r}")
    return list(range(available))


def _grouped(items: Iterable[T], size: int, partial: Partial) -> Iterator[tuple[list[T], int]]:
    """Items -> (rows of a batch, how many of them are no repeats)."""
    first: list[T] = []  # the beginning of the order, kept for "wrap"
    rows: list[T] = []
    for item in items:
        if partial == "wrap" and len(first) < size:
            first.append(item)
        rows.append(item)
        if len(rows) == size:
            yield rows, size
            rows = []
    if rows and partial in ("pad", "wrap"):
        repeats = cycle(first) if partial == "wrap" else cycle(rows[-1:])
        yield rows + list(islice(repeats, size - len(rows))), len(rows)


def _refuse_partial(source: Samples | Stream, count: int, size: int, partial: Partial) -> None:
    if count == 0:
        raise DataError(f"{source.describe()}: no samples at all; give it some, or start the loader anew")
    if partial == "drop" and count < size:
        raise DataError(
            f"{source.describe()}: {count} samples make no batch of {size} and partial='drop' leaves none; "
            "give more samples, a smaller batch, or partial='pad'"
        )
    if partial == "error" and count % size:
        raise DataError(
            f"{source.describe()}: {count} samples do not fill batches of {size}, "
            f"{count % size} are left over; give other numbers, or partial='pad', 'wrap' or 'drop'"
        )


def _load(source: Samples, index: int) -> Sample:
    try:
        return Sample(source.name(index), source.load(index), source.label(index))
    except TrtcalError:
        raise
    except Exception as error:
        name = source.name(index)
        raise DataError(f"sample {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _finished(rows: Sequence[int], valid: int, futures: Mapping[int, Future[Sample]]) -> Batch:
    return _stacked([futures[index].result() for index in rows], valid)


def _stacked(rows: Sequence[Sample], valid: int) -> Batch:
    first = rows[0]
    for name, arrays, _ in rows:
        if arrays.keys() != first.arrays.keys():
            raise DataError(
                f"samples {first.name!r} and {name!r} have different inputs, "
                f"{sorted(first.arrays)} and {sorted(arrays)}; every sample needs all of them"
            )
        for key, array in arrays.items():
            if array.shape != first.arrays[key].shape:
                raise DataError(
                    f"samples {first.name!r} {first.arrays[key].shape} and {name!r} {array.shape} differ in "
                    f"input {key!r} and cannot share a batch; bring them to one shape, or use batch size 1"
                )
    arrays = {key: np.stack([row.arrays[key] for row in rows]) for key in first.arrays}
    return Batch(arrays, samples=[row.name for row in rows], valid=valid)
