from __future__ import annotations

from typing import Any

import pytest

from trtcal.cluster import executor as executors
from trtcal.cluster.executor import RayExecutor
from trtcal.cluster.ray_cluster import Cluster


@pytest.mark.parametrize(("cpus", "workers", "in_a_task", "here"), [(0.5, None, 1, 7), (3.5, None, 3, 7), (1, 5, 5, 5)])
def test_a_task_runs_as_many_samples_as_it_has_cpus_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, cpus: float, workers: int | None, in_a_task: int, here: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    told: dict[str, Any] = {}
    monkeypatch.setattr(executors, "collect", lambda *_, **options: told.update(options))
    executor = RayExecutor(Cluster(cpus=cpus), workers)
    executor.run_pass(lambda: pytest.fail("no runner is opened here"), [], growth="double")
    assert told == {"cluster": executor.cluster, "workers": in_a_task, "growth": "double"}
    assert (executor.within_task.workers, executor.workers) == (in_a_task, here)
