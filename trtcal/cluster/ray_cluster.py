"""A Ray cluster to work on; the only file that knows Ray."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from trtcal.errors import BackendError
from trtcal.files import scripts

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10  # within which the head node of a cluster accepts a connection
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # as gRPC begins: RFC 9113, 3.4
RETRIES = 3  # of a task whose worker died
IN_FLIGHT = 2  # tasks under way or waiting, for each that can run


class Cluster:
    """A Ray cluster to work on: ``with Cluster() as cluster``.

    Without an ``address``, that is what ``RAY_ADDRESS`` names, or a cluster that runs on this machine, or a local one
    for as long as the block lasts; a process that has called ``ray.init`` stays with what it has. A task takes
    ``cpus``, and runs as many samples at once, and ``gpus``.

    Workers need trtcal in the versions that are here, and see folders under the same paths; a model whose weights are
    in its own file travels to them. Raises BackendError where Ray is missing or the cluster does not answer.
    """

    def __init__(self, address: str | None = None, *, cpus: float = 1, gpus: float = 0) -> None:
        if cpus <= 0 or gpus < 0:
            raise ValueError(f"a task needs some of a CPU and no negative number of GPUs, got {cpus} and {gpus}")
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self._ours = False  # to shut down at the end
        self._last: tuple[Callable[[Any], Any], Shared] | None = None  # what was spread last

    def __enter__(self) -> Cluster:
        ray = _ray()
        if not ray.is_initialized():
            _refuse_silent(self.address or os.environ.get("RAY_ADDRESS", ""))
            # No page is opened to the network and nothing is sent home on behalf of a local run.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # they are raised, or were outrun by another one
            try:
                ray.init(
                    address=self.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                where = f"the Ray cluster at {self.address}" if self.address else "a Ray cluster"
                raise BackendError(f"{where} cannot be used: {error}") from error
            self._ours = True
        self._warn_of_waiting()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            _ray().shutdown()
            self._ours = False
        self._last = None

    @property
    def threads(self) -> int:
        """Samples that a task runs at once, unless it is told otherwise: one for each of its CPUs, at least 1."""
        return max(1, int(self.cpus))

    @property
    def slots(self) -> int:
        """Tasks that can run at once on the nodes that are there now, at least 1."""
        there = _ray().cluster_resources()
        most = there.get("CPU", 0) / self.cpus
        if self.gpus:
            most = min(most, there.get("GPU", 0) / self.gpus)
        return max(1, int(most))

    def _warn_of_waiting(self) -> None:
        """Ray waits in silence for a node that is large enough; there may be none, nor ever come one."""
        for kind, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            most = max((node["Resources"].get(kind, 0) for node in _ray().nodes() if node["Alive"]), default=0)
            if wanted > most:
                logger.warning(
                    "a task takes %g %ss and no node of the cluster has more than %g: it waits for one that has",
                    *(wanted, kind, most),
                )

    def spread(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Generator[tuple[int, Any], None, None]:
        """Call a function on each item, each as a task -> number of the item and what came of it, as they end.

        The function travels once and is kept by the worker processes, so it may hold on to what is slow to make, and
        does until another one is spread. An exception is what came of that item; a task whose worker dies is tried
        again, three times.
        """
        if self._last is None or self._last[0] != function:
            self._last = function, self.share(function)
        shared, call = self._last[1], self.remote(_call)

        def start(item: Any) -> Callable[[], Any]:
            return lambda: call.remote(shared, item)

        for number, ref in self.ended(map(start, items)):
            try:
                found = fetched(ref, f"item {number}")
            except Exception as error:
                found = error
            yield number, found

    def share(self, value: Any) -> Shared:
        """Something that many tasks need -> what to hand to each of them; it travels once to each node."""
        ray = _ray()
        for module in scripts.loaded():  # which no worker could import
            ray.cloudpickle.register_pickle_by_value(module)
        return Shared(uuid.uuid4().hex, os.getcwd(), ray.put(value))

    def remote(self, function: Callable[..., Any], **options: Any) -> Any:
        """Function -> the same as a task with this cluster's resources, tried again where its worker dies."""
        return _ray().remote(function).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES, **options)

    def ended(self, tasks: Iterable[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
        """Start tasks, a bounded number at once -> number of each and its reference, as they end, well or badly."""
        ray = _ray()
        more, waiting = enumerate(tasks), dict[Any, int]()
        try:
            while True:
                for number, start in islice(more, max(0, IN_FLIGHT * self.slots - len(waiting))):
                    waiting[start()] = number
                if not waiting:
                    return
                for ref in ray.wait(list(waiting), num_returns=1, timeout=1, fetch_local=False)[0]:
                    yield waiting.pop(ref), ref
        finally:
            for ref in waiting:
                ray.cancel(ref)


def fetched(ref: Any, what: str = "a task") -> Any:
    """What a task answered; its own error where it raised one, BackendError where Ray could not have it done."""
    ray = _ray()
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise BackendError(f"{what}: {error}") from error
    except ray.exceptions.RayError as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise BackendError(f"Ray could not run {what}: {type(error).__name__}: {first}") from error


class Shared(NamedTuple):
    """What many tasks need, out of :meth:`Cluster.share`."""

    key: str
    folder: str  # from which relative paths go
    ref: Any

    def kept(self, make: Callable[[Any], Any]) -> Any:
        """In a worker: what ``make`` makes of it, once for as long as the process works for the same."""
        if self.key not in _kept:
            _kept.clear()
            with suppress(OSError):  # where there is no such folder, relative paths fail and are named
                os.chdir(self.folder)
            _kept[self.key] = make(_ray().get(self.ref))
        return _kept[self.key]


_kept: dict[str, Any] = {}  # of a worker's process


def _call(shared: Shared, item: Any) -> Any:
    return shared.kept(lambda function: function)(item)


def _refuse_silent(address: str) -> None:
    """BackendError where no Ray listens at ``host:port``; Ray itself would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return
    web = False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(HTTP2_HELLO)
            with suppress(TimeoutError):
                web = connection.recv(1) in (b"H", b"<")  # HTTP/1.1 or HTML; gRPC begins with a zero
    except (OSError, OverflowError) as error:
        raise BackendError(f"the Ray cluster at {address} does not answer: {error}") from error
    if web:
        raise BackendError(
            f"the Ray cluster at {address} cannot be used: a web page is there, perhaps Ray's dashboard; "
            "the head node listens at another port, 6379 if nobody chose one"
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BackendError("Ray is not installed: pip install 'trtcal[ray]'") from error
    return ray
