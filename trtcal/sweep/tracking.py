"""A sweep in an MLflow store: its settings, its numbers over the batch size, its files."""

from __future__ import annotations

import re
from collections import defaultdict
from importlib.util import find_spec

from trtcal.errors import BackendError
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import SweepRun

METRICS = ("accuracy", "agreement", "sqnr_db", "amax_change_max", "amax_change_median")
FILES = ("report.html", "trials.csv", "trials.json")
EXPERIMENT = "trtcal sweep"


def require() -> None:
    """Nothing -> nothing; BackendError where MLflow is not installed. Ask before a long run, not after it."""
    if find_spec("mlflow") is None:
        raise BackendError("MLflow is not installed: pip install 'trtcal[mlflow]'")


def log_sweep(run: SweepRun) -> str:
    """Sweep, with the plan that it was made by -> id of the run that holds them in MLflow's store.

    Where the store is, MLflow decides (``MLFLOW_TRACKING_URI``). A metric ``accuracy.entropy.shuffled`` has
    the batch size as its step, and is the mean over seeds.
    """
    require()
    import mlflow

    if mlflow.get_experiment_by_name(EXPERIMENT) is None:
        mlflow.create_experiment(EXPERIMENT)
    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run() as active:
        mlflow.log_params({"model": run.model, "data": run.data, **parameters(run.plan)})
        advice = run.recommendation
        mlflow.set_tags({"headline": advice.headline, "control_flat": advice.control_flat})
        values: dict[tuple[str, int], list[float]] = defaultdict(list)
        for row in run.rows:
            arm = f"{row['method']}.{row['order']}.{row['growth']}"
            for name in METRICS:
                if row[name] is not None:
                    values[f"{name}.{arm}", row["batch_size"]].append(row[name])
        for (name, batch_size), found in values.items():
            mlflow.log_metric(re.sub(r"[^\w.\-]", "_", name), sum(found) / len(found), step=batch_size)
        for name in FILES:
            if (run.folder / name).is_file():
                mlflow.log_artifact(str(run.folder / name))
        return str(active.info.run_id)


def parameters(plan: SweepPlan) -> dict[str, str]:
    """The plan as MLflow has parameters: text, several values joined by commas."""
    settings = plan.settings().items()
    return {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in settings}
