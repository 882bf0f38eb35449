from __future__ import annotations

import sys
from pathlib import Path

import pytest
from models import conv_model, images, save

from trtcal.errors import BackendError
from trtcal.ranges.thresholds import spelt
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep import tracking
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep


def test_without_mlflow_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'trtcal\[mlflow\]'"):
        tracking.require()


PARAMETERS = {
    "batch_sizes": "1,4",
    "orders": "given,shuffled,largest-first,largest-last",
    "seeds": "2",
    "methods": ",".join(spelt(swept=True)),
    "growths": "double,power-of-two",
    "exact": "False",
    "race": "True",
    "accuracy": "True",
    "metric": "top1",
    "eval_data": "None",
    "eval_samples": "None",
    "exclude": "",
}


def test_every_field_of_the_plan_is_a_parameter(tmp_path: Path) -> None:
    assert tracking.parameters(SweepPlan(batch_sizes=(1, 4), seeds=2)) == PARAMETERS
    assert tracking.parameters(SweepPlan(exclude=("a", "b")))["exclude"] == "a,b"


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_a_sweep_is_in_the_store_with_its_numbers_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    model = save(conv_model(), tmp_path / "m.onnx")
    batches = Batches(ArraySource({"image": images(8)}), 4)
    run = run_sweep(model, batches, tmp_path / "s", SweepPlan(batch_sizes=(1, 4), seeds=2))
    logged = mlflow.get_run(tracking.log_sweep(run))
    assert logged.data.params == {"model": "m.onnx", "data": "8 samples in memory", **PARAMETERS}
    assert logged.data.tags["headline"] == run.recommendation.headline
    assert logged.data.metrics["amax_change_max.minmax.given.double"] == 0
    history = mlflow.MlflowClient().get_metric_history(
        logged.info.run_id, "amax_change_max.percentile_99.9.shuffled.double"
    )
    assert [entry.step for entry in history] == [1, 4]
    kept = {path.name for path in (tmp_path / "store").rglob("artifacts/*")}
    assert kept == {"report.html", "trials.csv", "trials.json"}


def test_the_command_asks_for_mlflow_before_the_pass(
    run: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(run)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    save(conv_model(), tmp_path / "m.onnx")
    import numpy as np

    np.save(tmp_path / "x.npy", images(4))
    code, _, err = run("sweep", "m.onnx", "--data", "x.npy", "--no-accuracy", "--mlflow")
    assert code == 2
    assert "pip install 'trtcal[mlflow]'" in err
    assert not (tmp_path / "sweep").exists()
