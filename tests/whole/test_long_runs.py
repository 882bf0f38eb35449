"""What does not grow with the length of a run: memory but for what is kept of each sample, descriptors, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fakecuda
import pytest

TESTS = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def measured(program: str, *arguments: str) -> Any:
    """Program in a process of its own -> what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS / "helpers")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COLLECT = """
    import json, resource, sys
    import numpy as np
    from trtcal.passes.collect import collect
    from trtcal.samples.batches import Batch

    count, size = int(sys.argv[1]), 32
    rows = np.random.default_rng(0).normal(size=(size, 256)).astype(np.float32)

    class Batches:
        def __iter__(self):
            for first in range(0, count, size):
                part = rows[: min(size, count - first)] * np.float32(1 + first / count)
                yield Batch({"x": part}, samples=tuple(f"{first + row:06}" for row in range(len(part))))

    def runner(batch):
        x = batch["x"]
        return {"x": x, "relu": np.maximum(x, 0)}

    stats = collect(runner, Batches())
    assert len(stats.samples) == count and stats.tensors["relu"].histogram.total == count * 256
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arrays = sum(tensor.sample_amax.nbytes + tensor.sample_peaks.nbytes for tensor in stats.tensors.values())
    print(json.dumps({"peak": peak, "per_sample": arrays / count / len(stats.tensors)}))
"""


@LINUX
@pytest.mark.slow(reason="thousands of batches in a process of its own")
def test_a_hundred_times_the_samples_take_a_tenth_more_memory_at_most() -> None:
    """Of each sample stay its name and 12 bytes a tensor: its largest magnitude and how often it occurs."""
    short, long = (measured(COLLECT, str(count)) for count in (1_000, 100_000))
    assert short["per_sample"] == long["per_sample"] == 12
    assert long["peak"] < short["peak"] * 1.1, (short, long)


CLEAN = """
    import gc, json, os, sys, threading
    from pathlib import Path
    import numpy as np
    from faults import command
    from models import conv_model, images, save

    folder = Path(sys.argv[1])
    save(conv_model(), folder / "m.onnx")
    np.savez(folder / "x.npz", image=images(12), labels=np.arange(12) % 5)
    data = ["--data", "x.npz", "--batch-size", "4"]

    def state():
        gc.collect()
        return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
                "python threads": threading.active_count()}

    def everything():
        for arguments in (
            ["calibrate", "m.onnx", *data, "--force", "-o", "c.cache"],
            ["calibrate", "m.onnx", *data, "--force", "-o", "nowhere/c.cache"],
            ["sweep", "m.onnx", *data, "--force", "-o", "s", "--batch-sizes", "4",
             "--orders", "given", "--methods", "minmax", "--growths", "double"],
            ["evaluate", "m.onnx", "--cache", "c.cache", *data],
            ["qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx"],
        ):
            command(folder, *arguments)

    everything()  # what is loaded once stays
    before = state()
    for _ in range(3):
        everything()
    print(json.dumps([before, state()]))
"""


@LINUX
def test_descriptors_and_threads_are_back_after_every_command(tmp_path: Path) -> None:
    before, after = measured(CLEAN, str(tmp_path))
    assert after == before


@LINUX
@pytest.mark.slow(reason="thousands of batches in a process of its own")
def test_ten_thousand_calibrator_batches_leave_and_take_nothing(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        import gc
        from fakecuda import fakelib
        Path("m.onnx").write_bytes(onnx_model())
        batch = batches(1)[0]

        class Many:
            def __init__(self, count): self.count = count
            def __iter__(self):
                for _ in range(self.count):
                    seen.append((fakelib.live("bytes"), fakelib.live("device"), fakelib.live("host"))[:])
                    del seen[:-2]
                    yield batch

        seen = []
        def state():
            gc.collect()
            status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
            return {"descriptors": len(os.listdir("/proc/self/fd")), "threads": int(status["Threads"]),
                    "kilobytes": int(status["VmRSS"].split()[0])}

        def calibrated(count):
            calibrator = EntropyCalibrator(Many(count), cache="c.cache", policy="write", data_key="d")
            built = build_engine("m.onnx", "m.engine", calibrator=calibrator)
            return calibrator.feed.consumed, seen[-1]

        first = calibrated(100)
        calibrated(10_000)  # what the process and the doubles keep of a long run, they keep once
        before = state()
        many = calibrated(10_000)
        report(first=first, many=many, before=before, after=state(), live=live())
        """,
        timeout=300,
    )
    assert [found["first"][0], found["many"][0]] == [100, 10_000]
    assert found["many"][1] == found["first"][1], "device and page-locked memory during the last batch"
    assert found["live"] == {}
    before, after = found["before"], found["after"]
    assert (after["descriptors"], after["threads"]) == (before["descriptors"], before["threads"])
    assert after["kilobytes"] < before["kilobytes"] * 1.05
