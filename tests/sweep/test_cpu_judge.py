from __future__ import annotations

from pathlib import Path

import numpy as np
from models import conv_model, images, save

from trtcal.calibration.calibrate import calibrate
from trtcal.judging.metrics import METRICS
from trtcal.model.open import open_model
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.cpu_judge import CpuJudge


def test_the_cpu_judge_sees_what_int8_costs(tmp_path: Path) -> None:
    model = save(conv_model(), tmp_path / "m.onnx")
    graph = open_model(model)
    data = Batches(ArraySource({"image": images(12)}, labels=np.arange(12) % 5), 3)
    judge = CpuJudge(graph, data, data.labels, METRICS["top1"])
    good = calibrate(model, data, "minmax")
    amax = {name: np.float32(scale * 127) for name, scale in good.cache.scales.items()}
    fine, poor = judge(amax), judge({name: value / 50 for name, value in amax.items()})
    assert fine.sqnr_db is not None
    assert poor.sqnr_db is not None
    assert fine.sqnr_db > 20 > poor.sqnr_db
    assert fine.agreement is not None
    assert fine.agreement.mean() > 0.9
    assert fine.accuracy is not None
    assert fine.accuracy.shape == (12,)
