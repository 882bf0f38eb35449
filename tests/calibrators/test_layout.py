from __future__ import annotations

import argparse
from pathlib import Path

import fakecuda
import numpy as np
import pytest
from models import conv_model, images, save
from sequences import cloud, clouds, detector, heard, lstm, steps

from calibrators.command import _batches
from calibrators.layout import FedBatches, as_fed
from calibrators.options import parser
from trtcal.cache.provenance import origin
from trtcal.errors import DataError
from trtcal.model.open import open_model
from trtcal.samples.options import SampleOptions


def opened(tmp_path: Path, *said: str, size: int = 4) -> FedBatches:
    np.savez(tmp_path / "d.npz", **heard(6))
    model = open_model(detector()).asked(inputs=said or ["sr=8000"])
    made = as_fed(SampleOptions(data=str(tmp_path / "d.npz"), batch_size=size).open(model.inputs), model)
    assert isinstance(made, FedBatches)
    return made


def test_batches_come_as_the_network_takes_them(tmp_path: Path) -> None:
    batches = opened(tmp_path)
    first, second = batches
    assert {name: array.shape for name, array in first.items()} == {"x": (4, 4), "state": (2, 4, 4), "sr": ()}
    assert np.array_equal(first["state"][:, 1], heard(6)["state"][1])
    assert second.samples[:2] == ("d.npz[4]", "d.npz[5]")
    assert (first.valid, second.valid) == (4, 2)
    assert (len(batches), batches.num_samples, batches.batch_size) == (2, 6, 4)


def test_a_cache_made_with_another_constant_is_another(tmp_path: Path) -> None:
    how = {"files": [], "method": "m", "growth": "double", "header": ""}
    keys = {origin(opened(tmp_path, sr), **how).data_key for sr in ("sr=8000", "sr=16000", "sr=8000")}  # type: ignore[arg-type]
    assert len(keys) == 2


def test_whole_inputs_come_one_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clouds(4))
    model = open_model(cloud(32, [1, 5]))
    for size in (1, 2):
        batches = as_fed(SampleOptions(data=str(tmp_path / "x.npy"), batch_size=size).open(model.inputs), model)
        if size == 1:
            assert [batch["x"].shape for batch in batches] == [(32, 3)] * 4
        else:
            with pytest.raises(DataError, match="takes one sample at a time, got 2; calibrate with batches of 1"):
                next(iter(batches))


def test_other_models_keep_their_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(4))
    model = open_model(conv_model())
    batches = SampleOptions(data=str(tmp_path / "x.npy")).open(model.inputs)
    assert as_fed(batches, model) is batches


def flags(tmp_path: Path, *more: str) -> argparse.Namespace:
    onnx, data = str(tmp_path / "m.onnx"), str(tmp_path / "d.npz")
    given = ["--onnx", onnx, "--engine", "m.engine", "--int8", "--calib_input", data, "--batch-size", "2", *more]
    return parser().parse_args(given)


def test_a_build_has_the_options_and_finds_the_axis_of_a_time_major_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=steps(4))
    save(lstm("d0", "d1"), tmp_path / "m.onnx")
    assert [batch["x"].shape for batch in _batches(flags(tmp_path), {})] == [(10, 2, 4)] * 2
    save(detector(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **heard(4))
    batch = next(iter(_batches(flags(tmp_path, "--input", "sr=16000", "--batch-axis", "state=1"), {})))
    assert {name: array.shape for name, array in batch.items()} == {"x": (2, 4), "state": (2, 2, 4), "sr": ()}


@pytest.mark.slow(reason="builds engines in a process of its own")
def test_what_a_build_collects_itself_needs_samples_on_the_first_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=steps(4))
    save(lstm("T", "batch"), tmp_path / "m.onnx")
    script = str(Path(__file__).parents[2] / "scripts" / "build_engine.py")
    given = ["--onnx", "m.onnx", "--engine", "m.engine", "--int8", "--calib_input", "d.npz", "--method", "mse"]
    done = fakecuda.start(script, *given, cwd=tmp_path)
    assert done.returncode == 2
    assert "run trtcal calibrate --method mse with the same options, and give its cache: --calib_cache" in done.stderr
