"""The buffers of a feed: two per input on the device, two page-locked on the host, freed together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from calibrators.intake import DeviceArray
from calibrators.memory import LEGACY_STREAM, DeviceMemory, Staging
from trtcal.errors import DataError


class Buffers:
    """Named device buffers and their page-locked staging, ``slots`` of each, freed together.

    Buffers are made when first asked for, and made anew only for a larger size: a long feed allocates nothing.
    """

    def __init__(self, memory: DeviceMemory, slots: int = 2) -> None:
        self.memory = memory
        self._device: list[dict[str, tuple[int, int]]] = [{} for _ in range(slots)]
        self._staging: list[dict[str, Staging]] = [{} for _ in range(slots)]

    def device(self, slot: int, name: str, nbytes: int) -> int:
        """Slot, input and bytes -> device address with room for them."""
        address, size = self._device[slot].get(name, (0, -1))
        if size < nbytes:
            if address:
                del self._device[slot][name]
                self.memory.free(address)
            address = self.memory.allocate(max(nbytes, 1))
            self._device[slot][name] = address, nbytes
        return address

    def staging(self, slot: int, name: str, nbytes: int) -> Staging:
        """Slot, input and bytes -> (nbytes,) uint8 page-locked host array."""
        held = self._staging[slot].get(name)
        if held is None or held.nbytes < nbytes:
            if held is not None:
                self.memory.free_staging(self._staging[slot].pop(name))
            held = self._staging[slot][name] = self.memory.allocate_staging(max(nbytes, 1))
        return held[:nbytes]

    def place_host(
        self, slot: int, name: str, array: np.ndarray, dtype: np.dtype, check: Callable[[np.ndarray], None]
    ) -> int:
        """Host array -> device address with its copy under way, cast to ``dtype`` and seen by ``check``."""
        nbytes = array.size * dtype.itemsize
        address = self.device(slot, name, nbytes)
        staging = self.staging(slot, name, nbytes)
        staged = staging.view(dtype).reshape(array.shape)
        with np.errstate(over="ignore"):  # becomes inf, which the check is there to see
            np.copyto(staged, array, casting="unsafe")
        check(staged)
        if nbytes:
            self.memory.upload(address, staging)
        return address

    def place_device(self, slot: int, name: str, array: DeviceArray, dtype: np.dtype) -> int:
        """Somebody's device memory -> our own address with its copy under way; DataError where it is not what it says.

        Copied, not passed on: while TensorRT reads this batch, the loader may already fill its buffer again.
        """
        if array.dtype != dtype:
            raise DataError(f"the array on the device is {array.dtype}, TensorRT is to read {dtype}; convert it there")
        room = self.memory.extent(array.address)
        if room < array.nbytes:
            raise DataError(
                f"{array.nbytes} bytes are to be read at {array.address:#x}, where {room} are allocated on the device"
            )
        address = self.device(slot, name, array.nbytes)
        self.memory.synchronize(LEGACY_STREAM if array.stream is None else array.stream)
        if array.nbytes:
            self.memory.copy(address, array.address, array.nbytes)
        return address

    def close(self) -> None:
        """Free everything; a buffer that cannot be freed does not keep the others. The first error is raised."""
        first: BaseException | None = None
        releases: list[Callable[[], None]] = []
        for buffers in self._device:
            releases += [partial(self.memory.free, address) for address, _ in buffers.values()]
            buffers.clear()
        for stagings in self._staging:
            releases += [partial(self.memory.free_staging, staging) for staging in stagings.values()]
            stagings.clear()
        for release in releases:
            try:
                release()
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first

    def __enter__(self) -> Buffers:
        """The buffers themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free everything."""
        self.close()
