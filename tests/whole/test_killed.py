"""SIGKILL at fifty moments of a run and at each of its writes: nothing is half written, and a rerun goes on.

The runs are forked from a process that has imported everything, since a fresh one takes longer to start than to run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow(reason="kills runs at many moments"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

PROGRAM = """
    import json, os, random, shutil, signal, sys, time
    from pathlib import Path
    import numpy as np, onnx, onnx.inliner, onnxruntime
    import trtcal.cli, trtcal.calibration.file, trtcal.sweep.run
    from faults import Disk, command, content, copy_of
    from models import conv_model, images, save
    from trtcal.passes import collect as collector
    from trtcal.ranges.kernels import kernels

    kernels()
    # A checkpoint after every batch, as if each took half a minute.
    collector.SNAPSHOT_SECONDS = collector.CHECKPOINT_SECONDS = 0
    name, how, moments, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    template = folder / "template"
    template.mkdir()
    save(conv_model(), template / "m.onnx")
    np.savez(template / "x.npz", image=images(12))
    data = ["--data", "x.npz", "--batch-size", "4", "--workers", "1"]
    if name == "calibrate":
        arguments = again = ["calibrate", "m.onnx", *data, "-o", "c.cache", "--stats", "s.npz"]
        old = [*arguments, "--method", "minmax", "--samples", "8"]
    else:
        grid = ["--batch-sizes", "4,8", "--orders", "given", "--methods", "minmax", "--growths", "double"]
        arguments = ["sweep", "m.onnx", *data, *grid, "-o", "s"]
        again, old = [*arguments, "--resume"], None

    def start(copy, arguments, strike_at=None):
        pid = os.fork()
        if pid:
            return pid
        try:
            kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
            with Disk(copy, at=strike_at, strike=kill) as disk:
                code, err = command(copy, *arguments)
            (folder / "said").write_text(json.dumps([code, err, disk.points]))
        finally:
            os._exit(0)

    def run(copy, arguments, strike_at=None):
        (folder / "said").unlink(missing_ok=True)
        os.waitpid(start(copy, arguments, strike_at), 0)
        return json.loads((folder / "said").read_text()) if (folder / "said").exists() else None

    def results(copy):
        return {name: data for name, data in content(copy).items() if not Path(name).name.startswith(".")}

    if old:
        assert run(template, old)[0] == 0
    before = results(template)
    with copy_of(template) as copy:
        run(copy, arguments)
    with copy_of(template) as copy:
        began = time.monotonic()
        code, err, points = run(copy, arguments)
        duration = time.monotonic() - began
        assert code == 0, err
        whole = results(copy)
    rng = random.Random(0)
    strikes = range(len(points)) if how == "writes" else [(k + rng.random()) / moments for k in range(moments)]
    unfinished = {"settings.json", "drift.json", "stats.npz", "stats.partial.npz", "judgements.jsonl"}
    wrong, killed, resumed, litter = [], 0, 0, set()
    for strike in strikes:
        with copy_of(template) as copy:
            if how == "writes":
                killed += run(copy, arguments, strike) is None
            else:
                while True:
                    pid = start(copy, arguments)
                    time.sleep(duration * strike)
                    os.kill(pid, signal.SIGKILL)
                    if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
                        break
                    strike *= 0.8  # it was quicker than the run that was measured
                    shutil.rmtree(copy)
                    shutil.copytree(template, copy)
                killed += 1
            left = results(copy)
            for file, found in left.items():
                own = Path(file).name in unfinished or file.endswith(".partial.npz")
                if not own and found not in (before.get(file), whole.get(file)):
                    wrong.append([strike, file, "is neither the old nor the new one"])
            if before.keys() - left.keys():
                wrong.append([strike, "lost", sorted(before.keys() - left.keys())])
            resumed += any(file.endswith((".partial.npz", "stats.npz")) for file in left.keys() - before.keys())
            code, err, _ = run(copy, again)
            if code != 0 or results(copy) != whole:
                wrong.append([strike, code, err, sorted(results(copy))])
            litter |= {file.suffix for file in copy.rglob(".*")}
    print(json.dumps({"wrong": wrong, "killed": killed, "resumed": resumed, "strikes": len(strikes),
                      "litter": sorted(litter), "duration": duration}))
"""


def killed(name: str, how: str, moments: int, folder: Path) -> dict[str, Any]:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests / "helpers")])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), name, how, str(moments), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "name", ["calibrate", pytest.param("sweep", marks=pytest.mark.exhaustive(reason="kills a sweep at many moments"))]
)
@pytest.mark.parametrize(
    "how", ["moments", pytest.param("writes", marks=pytest.mark.exhaustive(reason="a kill at every write"))]
)
def test_a_killed_run_leaves_nothing_half_done_and_a_rerun_ends_with_the_same_bytes(
    tmp_path: Path, name: str, how: str
) -> None:
    found = killed(name, how, 25, tmp_path)
    assert found["wrong"] == []
    assert found["killed"] == found["strikes"] >= 25
    assert how == "moments" or found["resumed"] > 0, "some must have had something to go on from"
    # A temporary file goes after an hour, and a lock with the next run that writes.
    assert set(found["litter"]) <= {".tmp", ".lock"}
