from __future__ import annotations

import pytest

from calibrators.buffers import Buffers
from calibrators.memory import HostMemory
from trtcal.errors import BackendError


def test_buffers_are_reused_and_grow() -> None:
    memory = HostMemory()
    buffers = Buffers(memory)
    first = buffers.device(0, "x", 100)
    assert buffers.device(0, "x", 60) == first
    assert buffers.device(1, "x", 100) != first
    buffers.device(0, "x", 200)
    assert len(buffers.staging(0, "x", 10)) == 10
    assert len(buffers.staging(0, "x", 20)) == 20
    assert memory.live == 3
    buffers.close()
    assert memory.live == 0


def test_a_buffer_that_cannot_be_freed_does_not_keep_the_others() -> None:
    class Stubborn(HostMemory):
        def free(self, address: int) -> None:
            super().free(address)
            if address == stuck:
                raise BackendError("stuck")

    memory = Stubborn()
    buffers = Buffers(memory)
    stuck = buffers.device(0, "a", 4)
    buffers.device(0, "b", 4)
    buffers.staging(0, "b", 4)
    with pytest.raises(BackendError, match="stuck"):
        buffers.close()
    assert memory.live == 0
