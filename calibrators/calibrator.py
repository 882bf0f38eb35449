"""What the calibrator classes share: TensorRT's four calls, guarded, and the way out for a failure."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from calibrators import versions
from calibrators.feed import Feed
from calibrators.kept import FirstError
from calibrators.memory import DeviceMemory
from calibrators.origin import origin
from calibrators.store import CacheStore
from trtcal.cache import CalibrationCache, version_number
from trtcal.errors import BackendError, DataError
from trtcal.provenance import Provenance

logger = logging.getLogger(__name__)

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

    A calibrator serves one build.
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
        self._asked = False

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
        self._asked = True
        if self.failure:
            return None
        return self._kept(lambda: self._batch(names), None) or None

    def read_calibration_cache(self) -> bytes | None:
        """The ranges to use without calibrating, as TensorRT's text; None to calibrate."""
        self._asked = True
        if self.failure:
            return None
        self.handed_over = self._kept(self._read, None)
        return None if self.handed_over is None else self.handed_over.format()

    def write_calibration_cache(self, cache: Any) -> None:
        """The ranges that TensorRT found, as its text; kept and written unless anything went wrong before."""
        if self.failure:
            logger.error("no calibration cache is written, because of the error before: %s", self.failure.error)
            return
        data = bytes(cache)  # the memory is TensorRT's and ends with this call
        self._kept(lambda: self._write(data), None)

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

    def _where(self) -> str:
        return "calibration"

    # The way out

    def raise_if_failed(self) -> None:
        """Call it once the builder has returned: raises the kept error, and BackendError if nothing was asked of us."""
        self.failure.reraise()
        if not self._asked:
            raise BackendError(
                "TensorRT built without asking the calibrator for anything; set BuilderFlag.INT8, and note that a "
                "network with Q/DQ nodes is not calibrated"
            )

    def close(self) -> None:
        """Give the device memory back; done at the end of the data and after an error anyway."""

    def __enter__(self: Self) -> Self:
        """The calibrator itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Close, and raise the kept error; over one that the block raised too, because that one followed from it."""
        self.close()
        if error is None:
            self.raise_if_failed()
        elif isinstance(error, Exception) and error.__cause__ is not self.failure.error:
            self.failure.reraise()

    # Being told about the network

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """Input name -> (full shape, dtype) that the network reads; batches are checked against it."""

    def fed_shapes(self) -> dict[str, tuple[int, ...]]:
        """Input name -> full shape of the first batch; empty for ranges that are handed over."""
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
    ``__cuda_array_interface__`` or DLPack, or device address; `trtcal.data.Batches` adds sample names to messages.
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
        self._store = CacheStore(
            cache, policy, algorithm=self.algorithm, trt_version=self._trt_version, origin=self._origin
        )

    def _origin(self) -> tuple[Provenance, list[str]]:
        return origin(
            model=self._model,
            data_key=self._data_key,
            batches=self._batches,
            batch_size=self.feed.batch_size,
            method=self._method(),
            header=f"TRT-{version_number(self._trt_version)}-{self.algorithm}",
        )

    def _method(self) -> str:
        return f"tensorrt:{self.algorithm}"

    def expect(self, inputs: Mapping[str, Any]) -> None:
        """As `Calibrator.expect`."""
        self.feed.expect(inputs)

    def fed_shapes(self) -> dict[str, tuple[int, ...]]:
        """As `Calibrator.fed_shapes`; raises, with its place, whatever the first batch raises."""
        try:
            return self.feed.first_shapes()
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
        if self.feed.consumed:
            logger.info(
                "calibrated on %d batches of %s, %d samples",
                self.feed.consumed,
                self.feed.known_batch_size,
                self.feed.samples,
            )
            self.written = self._store.write(data)
        elif self.handed_over is None:
            raise DataError("TensorRT wrote a calibration cache without having been given one batch")
        # else TensorRT hands back the ranges it was given, and the file holds them already

    def _where(self) -> str:
        return f"calibration, {self.feed.where}"

    def close(self) -> None:
        """As `Calibrator.close`."""
        self.feed.close()
