"""Many sets of scales on one model: as :func:`trtcal.judging.accuracy.simulate`, with sessions that stay open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import numpy as np

from trtcal.model.open import Model, Source, for_rows, open_model
from trtcal.model.runner import OrtRunner, Runner
from trtcal.qdq.fed_scales import FedScales, Layers, layers

KEPT = 4  # sessions, each with the model's weights; sets of ranges differ in their numbers, and rarely in their layers


class Simulator:
    """A float model -> runners that compute it as INT8, bit for bit as `simulate` does with its default optimization.

    A session is opened for the layers that are INT8, and serves all scales that lead to the same ones. Each runs one
    operator with one ``thread`` by default: the CPU that threads wait with is lost, where several batches run at once.
    Runners may be called from several threads, and closing one leaves the session open. ``placement`` and ``exclude``
    are those of :func:`trtcal.qdq.insert.insert_qdq`.
    """

    def __init__(
        self, model: Source, *, placement: str = "all", exclude: Iterable[str] = (), threads: int | None = 1
    ) -> None:
        self.model: Model = open_model(model)
        self._threads = threads
        self._fed = FedScales(self.model, placement=placement, exclude=exclude)
        self._open: OrderedDict[Layers, tuple[OrtRunner, Mapping[str, str]]] = OrderedDict()

    def __call__(self, scales: Mapping[str, np.float32]) -> Runner:
        """Tensor -> scale; the model as INT8 with these. Raises as `simulate`."""
        plan = self._fed.plan(scales)
        key = layers(plan)
        if key not in self._open:
            while len(self._open) >= KEPT:
                self._open.popitem(last=False)
            made = self._fed.model(plan)
            libraries, name = self.model.libraries, self.model.name
            session = OrtRunner(made.model, threads=self._threads, name=name, libraries=libraries)
            self._open[key] = session, made.inputs
        self._open.move_to_end(key)
        session, inputs = self._open[key]
        return for_rows(
            _Fed(session, {inputs[name]: np.asarray(scale) for name, scale in plan.scales.items()}), self.model
        )


class _Fed:
    """A session with these scales."""

    def __init__(self, session: OrtRunner, scales: Mapping[str, np.ndarray]) -> None:
        self._session, self._scales = session, scales

    def __call__(self, batch: Mapping[str, np.ndarray], /) -> dict[str, np.ndarray]:
        return self._session({**batch, **self._scales})

    def __enter__(self) -> _Fed:
        return self

    def __exit__(self, *_: object) -> None:
        """The session is not this one's to close."""
