from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, save

import trtcal
from trtcal.passes.collect import collect
from trtcal.passes.executor import Here, one_by_one

X = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
BATCHES = [{"x": X[:8]}, {"x": X[8:]}]


def run(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"x": batch["x"], "relu": np.maximum(batch["x"], 0)}


def test_a_pass_here_is_that_of_collect_with_a_runner_of_its_own_that_is_closed() -> None:
    seen: list[str] = []

    @contextmanager
    def open_runner() -> Iterator[Any]:
        seen.append("opened")
        yield run
        seen.append("closed")

    told: list[int] = []
    stats = Here(3).run_pass(open_runner, BATCHES, growth="power-of-two", progress=told.append)
    assert stats.to_bytes() == collect(run, BATCHES, growth="power-of-two").to_bytes()
    assert seen == ["opened", "closed"]
    assert told == list(range(1, 13))


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_samples_run_at_once_as_there_are_workers(workers: int) -> None:
    together = threading.Barrier(workers)

    @contextmanager
    def open_runner() -> Iterator[Any]:
        def meet(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            together.wait(timeout=10)  # breaks, where fewer are under way
            return run(batch)

        yield meet

    batches = [{"x": X[:workers]}]
    assert Here(workers).run_pass(open_runner, batches).to_bytes() == collect(run, batches).to_bytes()


def test_without_a_number_there_is_a_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert Here().workers == 7
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert Here().workers == 1
    assert Here().within_task.workers == 1
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Here(0)


@pytest.mark.parametrize("spread", [one_by_one, Here(2).spread])
def test_what_goes_wrong_with_one_item_is_its_own(spread: Any) -> None:
    found = dict(spread(lambda number: 10 // number, [1, 0, 5]))
    assert (found[0], found[2]) == (10, 2)
    assert isinstance(found[1], ZeroDivisionError)


def test_calibrate_works_on_an_executor_and_refuses_two_answers(tmp_path: Path) -> None:
    model, batches = save(conv_model(), tmp_path / "m.onnx"), [{"image": images(4)}]
    assert trtcal.calibrate(model, batches, executor=Here(2)).cache == trtcal.calibrate(model, batches, workers=1).cache
    with pytest.raises(ValueError, match="give workers, or an executor that has its own; not both"):
        trtcal.calibrate(model, batches, workers=2, executor=Here(2))


def test_a_command_on_one_machine_loads_nothing_of_the_cluster(tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", images(4))
    program = (
        "import sys\nfrom trtcal.cli import app\n"
        "for command in (['calibrate', '-o', 'm.cache'], ['sweep', '-o', 's', '--batch-sizes', '2', '--seeds', '1']):\n"
        "    app([*command, 'm.onnx', '--data', 'd.npy'], standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('trtcal.cluster', 'ray'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
