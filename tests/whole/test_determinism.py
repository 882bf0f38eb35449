"""One test per claim of docs/reliability.md: what gives the same bytes, and what changes them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from models import batched, conv_model, images, save
from PIL import Image

from trtcal import demo
from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.model.runner import OrtRunner
from trtcal.passes.collect import collect
from trtcal.ranges.kernels import Kernels, numpy_abs_max_bits, numpy_add_counts, numpy_divergences
from trtcal.ranges.stats import ActivationStats
from trtcal.ranges.thresholds import method
from trtcal.samples.batches import Batches
from trtcal.samples.preprocess import preset
from trtcal.samples.sources import ArraySource, ImageFolder

METHODS = ("entropy", "minmax", "percentile:99.9", "mse")


def integers(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Activations by whole numbers and powers of two alone, so that every machine has the same."""
    x = np.asarray(batch["image"], np.int64)
    return {
        "image": x.astype(np.float32),
        "square": (x * x % 1021).astype(np.float32),
        "tail": (x**3 % 4093 >> (x & 7)).astype(np.float32) / np.float32(64),
        "zero": np.zeros_like(x, np.float32),
    }


def whole_numbers(count: int = 40) -> np.ndarray:
    """(count, 3, 16, 16), each sample wider than the one before."""
    grid = np.arange(count * 3 * 16 * 16, dtype=np.int64).reshape(count, 3, 16, 16)
    return ((grid * 7919 % 257 - 128) * (1 + grid // (3 * 16 * 16))).astype(np.float32)


def collected(size: int = 8, **options: Any) -> ActivationStats:
    return collect(integers, batched(whole_numbers(), size), **options)


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def fine(stats: ActivationStats) -> str:
    """All that does not depend on the batches, as one digest."""
    return digest(
        *(
            part
            for name, tensor in stats.tensors.items()
            for part in (
                name.encode(),
                tensor.sample_amax.astype("<f4").tobytes(),
                tensor.sample_peaks.astype("<i8").tobytes(),
                tensor.histogram.counts.astype("<i8").tobytes(),
                repr((tensor.histogram.limit, float(tensor.histogram.amax))).encode(),
            )
        )
    )


def ranges(stats: ActivationStats) -> bytes:
    """The caches by all methods, one after the other."""
    caches = []
    for name in METHODS:
        by = method(name)
        amax = {
            tensor: by(found.batch_grid if by.depends_on_batches and found.batch_grid else found.histogram)
            for tensor, found in stats.tensors.items()
        }
        caches.append(CalibrationCache.from_amax(amax, trt_version="8.6.1").format())
    return b"".join(caches)


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_samples_run_at_once_changes_nothing(workers: int) -> None:
    assert collected(workers=workers).to_bytes() == collected().to_bytes()
    one = calibrate_small(workers=1)
    assert calibrate_small(workers=workers) == one


def calibrate_small(workers: int) -> bytes:
    from trtcal.calibration.calibrate import from_stats
    from trtcal.model.open import FloatRunner, open_model

    graph = open_model(demo.model_path())
    with FloatRunner(graph) as runner:
        stats = collect(runner, batched(demo.calibration_images()[:12], 4), workers=workers)
    return stats.to_bytes() + from_stats(graph, stats, "entropy").cache.format()


@pytest.mark.parametrize("size", [1, 3, 40])
def test_batches_leave_no_trace_in_fine_histograms_and_maxima(size: int) -> None:
    assert fine(collected(size)) == fine(collected(8))
    assert collected(size).samples == collected(8).samples


def test_batches_change_what_tensorrt_s_own_growth_makes_of_them() -> None:
    """The claim before would be empty if the data could not show it."""
    assert ranges(collected(1)) != ranges(collected(40))


def test_every_python_and_every_numpy_finds_the_same_in_equal_activations() -> None:
    """Written by Python 3.11 with NumPy 2; CI holds all other versions against it."""
    stats = collected()
    assert fine(stats) == FINE
    assert hashlib.sha256(ranges(stats)).hexdigest() == RANGES


FINE = "abd28f5937a12c91fc2b36e00f8e383ba34c44d59f4699de2cc9d43486b5bb77"
RANGES = "f01a3540d27b1cdf8c28b1b4f9ad4ad53ba27ecdcd6699a774ad029fe684c4f5"


def test_numpy_alone_finds_what_numba_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = collected()
    expected = compiled.to_bytes(), ranges(compiled)
    plain = Kernels(numpy_abs_max_bits, numpy_add_counts, numpy_divergences)
    for module in ("histogram", "thresholds"):
        monkeypatch.setattr(f"trtcal.ranges.{module}.kernels", lambda: plain)
    found = collected()
    assert (found.to_bytes(), ranges(found)) == expected


def test_decoding_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = []
    for cores in (1, 2, 8):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        source = ImageFolder(tmp_path, preset("0-1", size=(8, 8)), input_name="image")
        batches = Batches(source, 4, order="shuffled", seed=1)
        found.append([(batch.samples, batch["image"].tobytes()) for batch in batches])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("optimization", ["disabled", "extended"])
def test_onnx_runtime_s_threads_do_not_change_what_these_models_compute(optimization: Any) -> None:
    """Measured, not promised by ONNX Runtime. The pass of a calibration asks it for one thread in any case."""
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 32):
        pytest.skip(f"measured with ONNX Runtime 1.32; 1.18 does change the last bits, and this is {ort.__version__}")
    batch = {"image": demo.calibration_images()[:16]}
    found = []
    for threads in (1, 2, 4):
        with OrtRunner(demo.model_path(), threads=threads, optimization=optimization) as runner:
            found.append({name: array.tobytes() for name, array in runner(batch).items()})
    assert found[0] == found[1] == found[2]


def test_statistics_read_and_written_again_are_the_same_bytes() -> None:
    data = collected().to_bytes()
    assert ActivationStats.from_bytes(data).to_bytes() == data


def test_samples_of_any_kind_of_iterable_give_the_same_cache(tmp_path: Path) -> None:
    model = save(conv_model(), tmp_path / "m.onnx")
    one = calibrate(model, Batches(ArraySource({"image": images(12)}), 4)).cache
    two = calibrate(model, batched(images(12), 4)).cache
    assert one.format() == two.format()


PROGRAM = """
    import contextlib, hashlib, io, json, os, sys
    from pathlib import Path
    from faults import command, content
    folder, given = Path(sys.argv[1]), sys.argv[2]
    data = ["--data", f"{given}x.npz", "--batch-size", "4"]
    for arguments in (
        ["calibrate", f"{given}m.onnx", *data, "-o", f"{given}c.cache", "--stats", f"{given}s.npz"],
        ["sweep", f"{given}m.onnx", *data, "-o", f"{given}s", "--batch-sizes", "2,4", "--seeds", "2"],
        ["sensitivity", f"{given}m.onnx", *data, "--cache", f"{given}c.cache", "-o", f"{given}s/sensitivity.json"],
        ["report", f"{given}s"],
        ["qdq", f"{given}m.onnx", "--cache", f"{given}c.cache", "-o", f"{given}q.onnx"],
        ["contact-sheet", f"{given}m.onnx", "--data", f"{given}x.npz", "-o", f"{given}seen.png"],
        ["cache", "convert", f"{given}q.onnx", "-o", f"{given}back.cache"],
    ):
        code, err = command(Path.cwd(), *arguments)
        assert code == 0, err
    print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in content(folder).items()}))
"""


@pytest.mark.slow(reason="three fresh processes")
def test_a_fresh_process_under_other_circumstances_writes_the_same_files(tmp_path: Path) -> None:
    """Hash seed, time zone, locale, threads, working folder and relative or absolute paths."""
    tests = Path(__file__).parents[1]
    common = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests / "helpers")])}
    other = {"PYTHONHASHSEED": "1", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    found = []
    for name, environment, inside in (
        ("one", {"PYTHONHASHSEED": "0", "TZ": "UTC"}, True),
        ("two", other, False),
        ("three", {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "NUMBA_DISABLE_JIT": "0"}, True),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save(conv_model(), folder / "m.onnx")
        np.savez(folder / "x.npz", image=images(12), labels=np.arange(12) % 5)
        given = "" if inside else f"{folder}{os.sep}"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), given],
            env={**common, **environment},
            cwd=folder if inside else tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(found[0]) >= 13
    assert differing(found[0], found[2]) == []
    # What a person is told of where the data lay is part of the sidecar and the trials; nothing else differs.
    assert set(differing(found[0], found[1])) <= {"c.cache.json", *SWEEP}


SWEEP = ("s/trials.json", "s/report.html", "s/settings.json")


def differing(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
