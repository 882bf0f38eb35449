"""The CUDA kernel on the CPU, behind the host memory that is shipped as a fake; and a runner in the role of an engine."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from calibrators.buffers import Buffers
from calibrators.memory import Attribute, DeviceMemory, HostMemory
from calibrators.visible import Visible


def kernel_memory(library: Path, attributes: Mapping[Attribute, int] | None = None) -> HostMemory:
    """The library of `setup_env.kernels` -> host memory that launches its kernel, with attributes of another device."""
    function = ctypes.CDLL(str(library)).run_observe

    def launch(blocks: int, threads: int, shared: int, arguments: Sequence[np.generic]) -> None:
        held = [np.array(argument) for argument in arguments]
        places = (ctypes.c_void_p * len(held))(*(argument.ctypes.data for argument in held))
        assert function(blocks, threads, shared, places, None) == 0

    memory = HostMemory()
    memory.functions["observe"] = launch
    memory.attributes.update(attributes or {})
    return memory


class Shown:
    """Any runner in the role of `VisibleEngine`: its answers lie on the device, in groups of ``size`` tensors."""

    def __init__(
        self, runner: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], memory: DeviceMemory, size: int = 2
    ) -> None:
        self.runner, self.memory, self.size = runner, memory, size
        self.buffers = Buffers(memory, slots=1)
        self.runs = 0

    def run(self, sample: dict[str, np.ndarray]) -> Iterator[list[Visible]]:
        self.runs += 1
        answer = list(self.runner(sample).items())
        for begin in range(0, len(answer), self.size):
            group = answer[begin : begin + self.size]
            places = [self._place(str(place), array) for place, (_, array) in enumerate(group)]
            yield [Visible(name, place, array.size) for (name, array), place in zip(group, places, strict=True)]

    def decisive(self, names: Collection[str]) -> Collection[str] | None:
        known = getattr(self.runner, "decisive", None)
        return None if known is None else known(names)

    def _place(self, place: str, array: np.ndarray) -> int:
        """The same buffer for the first tensor of each group: whoever reads it late reads another one's values."""
        return self.buffers.place_host(0, place, array, np.dtype(np.float32), lambda _: None)

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.buffers.close()
