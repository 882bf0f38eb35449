"""What the calibrator classes share: TensorRT's four calls, guarded, and the way out for a failure."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from calibrators import versions
from calibrators.coverage import refuse_foreign
from calibrators.feed import Feed
from calibrators.first_error import FirstError
from calibrators.memory import DeviceMemory
from calibrators.shapes import network_inputs
from calibrators.store import TENSORRT, CacheStore, data_inputs
from trtcal.cache.cache import CalibrationCache, version_number
from trtcal.cache.provenance import Provenance, origin, read_sidecar
from trtcal.errors import BackendError
from trtcal.model.read import model_files

logger = logging.getLogger(__name__)

_SWALLOWED = "an interrupt was swallowed on the way into a callback, or TensorRT stopped early, which its log tells"

T = TypeVar("T")
Self = TypeVar("Self", bound="Calibrator")


class Calibrator:
    """A TensorRT calibrator whose first error survives the build; a context manager.

    TensorRT swallows every exception that a calibrator raises. Here the first one is logged and kept, no cache is
    written after it, and leaving the ``with`` block, or `raise_if_failed`, raises it. Write the engine file after
    that, never before::

        with EntropyCalibrator(batches, cache="model.cache") as calibrator:
            config.int8_calibrator = calibrator
            plan = builder.build_serialized_network(network, config)
        Path("model.engine").write_bytes(plan)

    A calibrator serves one build. A Ctrl-C that Python delivers while TensorRT enters a callback never reaches this
    class: the bindings swallow it and TensorRT takes it for the end of the data. So ranges are believed only where the
    data came to their own end, and a build that cannot show this is an error too.
    """

    algorithm: ClassVar[str]
    """Name of the algorithm in the cache's header."""

    is_polygraphy_calibrator = True
    """Lets Polygraphy's CreateConfig tell us the shapes that the network reads; see `set_input_metadata`."""

    def __init__(self) -> None:
        super().__init__()  # TensorRT's class, next in line; without it the trampolines have no object behind them
        self.failure = FirstError()
        """The first error, if there was one."""
        self.handed_over: CalibrationCache | None = None
        """The ranges that TensorRT was given instead of data."""
        self.written: CalibrationCache | None = None
        """The ranges that TensorRT found in the data."""
        self.cache_path: Path | None = None
        """The cache file that is read or written; None without one."""
        self.data_paths: list[Path] = []
        """The file that holds the data, where the batches tell."""
        self._asked = self._was_read = self._wanted_data = self._closed = False

    @property
    def was_asked(self) -> bool:
        """Whether a build has begun to use this calibrator."""
        return self._asked

    @property
    def ranges(self) -> CalibrationCache | None:
        """The ranges that the build used; None before it, and after a failure."""
        return None if self.failure else self.written or self.handed_over

    # TensorRT's calls. Whatever goes wrong in one is kept, and the answer is the one that ends the calibration soonest.

    def get_batch_size(self) -> int:
        """Rows of a batch. Networks with explicit batch ignore it: their own shape, or the profile's, counts."""
        self._asked = True
        return self._kept(self._batch_size, -1)

    def get_batch(self, names: Sequence[str]) -> list[int] | None:
        """Input names -> a device pointer each, in that order; None at the end of the data."""
        self._asked = self._wanted_data = True
        if self.failure:
            return None
        return self._kept(lambda: self._next(names), None) or None

    def read_calibration_cache(self) -> bytes | None:
        """The ranges to use without calibrating, as TensorRT's text; None to calibrate."""
        self._asked = True
        if self.failure:
            return None
        return self._kept(self._answer_read, None)

    def write_calibration_cache(self, cache: Any) -> None:
        """The ranges that TensorRT found, as its text; kept and written unless anything went wrong before."""
        self._asked = True
        if self.failure:
            logger.error("no calibration cache is written, because of the error before: %s", self.failure.error)
            return
        self._kept(lambda: self._write(bytes(cache)), None)  # the memory is TensorRT's and ends with this call

    def _next(self, names: Sequence[str]) -> list[int]:
        self._refuse_a_second_build()
        if not self._was_read:
            raise BackendError(f"TensorRT asks for data and never had an answer whether there is a cache; {_SWALLOWED}")
        return self._batch(names)

    def _answer_read(self) -> bytes | None:
        self._refuse_a_second_build()
        self.handed_over = self._read()
        self._was_read = True
        return None if self.handed_over is None else self.handed_over.format()

    def _refuse_a_second_build(self) -> None:
        if self._closed or self.written is not None:
            raise BackendError("a calibrator serves one build, and this one has had it; make a new one for the next")

    def _kept(self, answer: Callable[[], T], otherwise: T) -> T:
        try:
            return answer()
        except BaseException as error:
            self.failure.keep(error, self._where())
            return otherwise

    # What a kind of calibrator does

    def _batch_size(self) -> int:
        raise NotImplementedError

    def _batch(self, names: Sequence[str]) -> list[int]:
        raise NotImplementedError

    def _read(self) -> CalibrationCache | None:
        raise NotImplementedError

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _check_handed_back(self, data: bytes) -> None:
        """What TensorRT writes without having calibrated -> BackendError unless it is what it was given."""
        scales = {} if self.handed_over is None else self.handed_over.scales
        given = {(name, scale.tobytes()) for name, scale in scales.items()}  # bytes, since nan equals nothing
        found = CalibrationCache.parse(data, name="the cache that TensorRT wrote").scales
        if not found or any((name, scale.tobytes()) not in given for name, scale in found.items()):
            raise BackendError(
                f"TensorRT wrote ranges without having been given one batch, and not those that it was given; "
                f"{_SWALLOWED}"
            )

    def _unfinished(self) -> str | None:
        """Why the build cannot have used what it was given; None where all is well."""
        if self.handed_over is not None and not self._wanted_data:
            return None
        return f"TensorRT built without ranges and without one batch; {_SWALLOWED}"

    def _where(self) -> str:
        return "calibration"

    # The way out

    def raise_if_failed(self) -> None:
        """Call it once the builder has returned: raises the kept error, and BackendError where none was kept but the
        build used neither all of the data nor the ranges that were handed over.
        """
        self.failure.reraise()
        if not self._asked:
            raise BackendError(
                "TensorRT built without asking the calibrator for anything; set BuilderFlag.INT8, and note that a "
                "network with Q/DQ nodes is not calibrated"
            )
        unfinished = self._unfinished()
        if unfinished is not None:
            raise BackendError(f"{self._where()}: {unfinished}")

    def close(self) -> None:
        """Give the device memory back, and serve no further build."""
        self._closed = True

    def __enter__(self: Self) -> Self:
        """The calibrator itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Close, and raise the kept error; over one that the block raised too, because that one followed from it."""
        self.close()
        if error is None:
            self.raise_if_failed()
        elif isinstance(error, SystemExit) and not error.code and self._asked:
            self.raise_if_failed()  # an exit that calls itself a success must not hide a failure
        elif isinstance(error, Exception) and error.__cause__ is not self.failure.error:
            self.failure.reraise()

    # Being told about the network

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """Input name -> (full shape, dtype) that the network reads; batches are checked against it."""

    def expect_network(self, network: Any, profile: Any = None) -> None:
        """TensorRT's parsed network, and the calibration profile where it has dynamic axes -> `expect` of its inputs.

        What counts is a static shape, or the OPT shape of ``profile``. Also checks ranges that are to be handed over:
        CacheError where they name no tensor of the network. ValueError where an input's shape stays open.
        """
        inputs = {}
        for item in network_inputs(versions.tensorrt(), network):
            shape = item.shape
            if item.dynamic:
                found = [] if profile is None else profile.get_shape(item.name)
                if len(found) != 3 or len(tuple(found[1])) != len(shape):
                    raise ValueError(
                        f"input {item.name!r} is {shape}: pass the calibration profile, with a shape for it: profile="
                    )
                shape = tuple(int(size) for size in found[1])
            inputs[item.name] = shape, item.dtype
        self.expect(inputs)
        if self.to_hand_over is not None:
            refuse_foreign(self.to_hand_over, network)

    @property
    def to_hand_over(self) -> CalibrationCache | None:
        """The ranges that TensorRT will be given; None where it will be given data."""
        return None

    def fed_shapes(self, inputs: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """Input name -> full shape of the first batch; empty for ranges that are handed over.

        Raises for an entry among ``inputs`` that is no array.
        """
        return {}

    def set_input_metadata(self, metadata: Mapping[str, Any]) -> None:
        """The same from Polygraphy, which calls this by itself."""
        inputs = {}
        for name, entry in metadata.items():
            dtype = str(entry.dtype)
            inputs[name] = tuple(entry.shape), "float32" if "float" in dtype else dtype
        if all(isinstance(size, int) and size >= 0 for shape, _ in inputs.values() for size in shape):
            self.expect(inputs)


class FedCalibrator(Calibrator):
    """A calibrator that feeds batches and keeps what TensorRT finds; see the classes for one of TensorRT's each.

    ``batches``: any re-iterable of mappings from input name to numpy array, torch tensor (CPU or CUDA), object with
    ``__cuda_array_interface__`` or DLPack, or device address; `Batches` adds sample names to messages.
    Shapes are checked against ``inputs`` (name -> (full shape, dtype)), which `build_engine` and Polygraphy supply, or
    else against the first batch; casts are those of `calibrators.intake`.

    ``cache``: file to keep the ranges in; ``policy``: one of `calibrators.store.POLICIES`; ``model`` (the ONNX file)
    and ``data_key`` (any text that changes with the data; `Batches` supplies its own) say what the cache belongs to,
    and without them "auto" never reuses one.

    ``memory`` and ``device``: see `calibrators.memory.open_memory`. ``batch_size`` is needed only where batches hold
    nothing but device addresses.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Any]],
        *,
        cache: str | os.PathLike[str] | None = None,
        policy: str = "auto",
        model: str | os.PathLike[str] | None = None,
        data_key: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        memory: str | DeviceMemory | None = None,
        device: int | None = None,
    ) -> None:
        super().__init__()
        trt = versions.tensorrt()
        self.feed = Feed(
            batches,
            inputs=inputs,
            batch_size=batch_size,
            memory=memory,
            device=device,
            int64=versions.has_int64(trt),
        )
        """Counts what was consumed: ``feed.consumed`` batches, ``feed.samples`` rows."""
        self._batches, self._model, self._data_key = batches, model, data_key
        self._policy, self._trt_version = policy, versions.dotted(trt)
        self._looked = False  # the cache file is judged once
        self._found: CalibrationCache | None = None
        self.data_paths = data_inputs(batches)
        self._store = CacheStore(
            cache,
            policy,
            algorithm=self.algorithm,
            trt_version=self._trt_version,
            origin=self._origin,
            inputs=[model, *self.data_paths],
        )
        self.cache_path = self._store.path

    def _origin(self) -> Provenance:
        size = self.feed.batch_size
        made = origin(
            self._batches,
            files=[] if self._model is None else model_files(self._model),
            data_key=self._data_key,
            batch_size=size,
            method=self._method(),
            growth=TENSORRT,
            header=f"TRT-{version_number(self._trt_version)}-{self.algorithm}",
        )
        kept = None if self._store.path is None else read_sidecar(self._store.path)
        if kept is not None and not hasattr(self._batches, "num_samples"):
            # How many are fed is known only afterwards: the last batch may be padded, a loader may have no length.
            fed, most = kept[0].samples_used, made.samples_used
            if most == 0 or most - size < fed < most:
                made = replace(made, samples_used=fed)
        return made

    def _method(self) -> str:
        return f"tensorrt:{self.algorithm}"

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """As `Calibrator.expect`."""
        self.feed.expect(inputs)

    @property
    def to_hand_over(self) -> CalibrationCache | None:
        """As `Calibrator.to_hand_over`."""
        return self._read()

    def fed_shapes(self, inputs: Container[str] = ()) -> dict[str, tuple[int, ...]]:
        """As `Calibrator.fed_shapes`; raises, with its place, whatever the first batch raises."""
        try:
            return self.feed.first_shapes(inputs)
        except BaseException as error:
            self.failure.keep(error, self._where())
            self.failure.reraise()
            raise

    def _batch_size(self) -> int:
        known = self.feed.known_batch_size
        if known is not None:
            return known
        # With a cache at hand the data may be gone, and the number means nothing.
        return 1 if self._read() is not None else self.feed.batch_size

    def _batch(self, names: Sequence[str]) -> list[int]:
        if self.handed_over is not None and self._policy == "read":
            raise BackendError(
                f"TensorRT did not take the ranges of {self._store.path} and asks for data; see its log, or calibrate "
                f"with policy='write'"
            )
        if self.handed_over is not None:
            logger.warning("%s: TensorRT did not take it and asks for data; calibrating anew", self._store.path)
            self.handed_over = None
        return self.feed.next(names)

    def _read(self) -> CalibrationCache | None:
        if not self._looked:
            self._looked, self._found = True, self._store.read()
        return self._found

    def _write(self, data: bytes) -> None:
        if not self.feed.consumed:
            self._check_handed_back(data)  # the file holds them already
            return
        if not self.feed.exhausted:
            raise BackendError(f"the feed did not end by itself: {_SWALLOWED}")
        rows = self.feed.fed_rows
        logger.info("calibrated on %d batches of %s, %d samples", self.feed.consumed, rows, self.feed.samples)
        self.written = self._store.write(data, batch_size=rows, samples=self.feed.samples)

    def _unfinished(self) -> str | None:
        if not self._wanted_data and not self.feed.consumed:
            return super()._unfinished()
        if self.written is not None:
            return None
        if not self.feed.exhausted:
            return f"the feed did not end by itself: {_SWALLOWED}"
        return f"TensorRT had all the data and wrote no ranges; {_SWALLOWED}"

    def _where(self) -> str:
        return f"calibration, {self.feed.where}"

    def close(self) -> None:
        """As `Calibrator.close`."""
        super().close()
        self.feed.close()
