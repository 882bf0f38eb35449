#!/usr/bin/env python3
"""Asks a real TensorRT, 8.5 to 10.16, on a GPU, everything about it that trtcal believes and cannot know elsewhere.

    python scripts/gpu_acceptance.py                      all steps, under eight minutes
    python scripts/gpu_acceptance.py --only facts calls   some of them; --list names them
    python scripts/gpu_acceptance.py --model fashion/cnn.onnx --model text.onnx,lines.npz
    python scripts/gpu_acceptance.py --dry-run            every step on test doubles; measures nothing

Writes gpu-acceptance-DATE-TIME.json and .md into benchmarks/results, both complete after every step. Each step is a
process of its own with a time limit. Under test doubles, which are found by looking at the loaded libraries, nothing is
judged. The exit code is 0 where all is as expected, 1 where something differs or failed, and 2 where there is nothing
to measure on. What the steps are for: docs/parity.md.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]  # this checkout, whatever is installed

from acceptance import steps  # noqa: E402
from acceptance.children import be_child, die_with, give_up, run_step  # noqa: E402
from acceptance.findings import NOT_MEASURED, Context, Step  # noqa: E402
from acceptance.machine import NoGpu, describe_host, device, test_doubles  # noqa: E402
from acceptance.networks import Model, by_path, embedded  # noqa: E402
from acceptance.record import Record  # noqa: E402

from calibrators import versions  # noqa: E402
from calibrators.versions import CalibratorsUnavailable  # noqa: E402

BUDGET = 450  # seconds
LEAST = 10  # seconds; with less left a step is not begun
FINE = ("ok", "measured", "skipped", NOT_MEASURED)
_SET_UP = "ACCEPTANCE_DOUBLES"


def main() -> int:
    """Run what the command line asks for -> exit code."""
    options = _options()
    models = [by_path(text) for text in options.model]
    chosen = _chosen(options, models)
    if options.list:
        for step in chosen:
            print(f"{step.name:18} {step.seconds:4.0f} s  {step.what}")
        return 0
    if options.child:
        _child(options, models)
        return 0
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as scratch:
        return _run(options, chosen, Path(scratch))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s [options]"
    )
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps, after the one that looks at the GPU")
    parser.add_argument("--list", action="store_true", help="name the steps and the longest that each may take")
    parser.add_argument("--dry-run", action="store_true", help="on test doubles; they are set up where there is no GPU")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL.onnx[,DATA.npz[,LABELLED.npz]]",
        help="a further model; by default with calibration.npz and, if there is one, labelled.npz beside it",
    )
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all steps together (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="default: benchmarks/results",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(options: argparse.Namespace, models: list[Model]) -> Sequence[Step]:
    known = {step.name: step for step in steps.all_steps(models)}
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        sys.exit(f"no step {unknown[0]!r}; there are {', '.join(known)}")
    return [step for name, step in known.items() if not options.only or name in (*options.only, steps.MACHINE.name)]


def _run(options: argparse.Namespace, chosen: Sequence[Step], scratch: Path) -> int:
    begin = time.monotonic()
    command = [sys.executable, sys.argv[0]]
    for text in options.model:
        command += ["--model", text]
    first, *others = chosen
    looked = run_step(first, command, scratch, first.seconds, lambda _: None)
    head = _head(looked, options)
    if options.dry_run and head["tensorrt"] is None and _SET_UP not in os.environ:
        _start_again_on_doubles(scratch)
    record = Record(options.output, f"gpu-acceptance-{_stamp(head)}", head)
    record.put(first.name, looked)
    if "error" in head:
        print(f"{head['error']}\n{record.json}", file=sys.stderr)
        return 2
    for step in others:
        left = options.seconds - (time.monotonic() - begin)
        if left < LEAST:
            result: dict[str, Any] = {"what": step.what, "status": "not run", "findings": [], "error": "out of time"}
        else:
            result = run_step(step, command, scratch, min(step.seconds, left), partial(record.put, step.name))
        if result.pop("machine", {}).get("doubles"):
            record.data["dry_run"] = True
        record.put(step.name, result)
        print(f"{step.name:18} {result['status']:14} {result.get('seconds', 0):6.1f} s", flush=True)
    print(record.page)
    return 0 if all(step["status"] in FINE for step in record.data["steps"].values()) else 1


def _head(looked: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What the step that looks at the machine found -> the top of the record, with ``error`` where that is the end."""
    found = looked.pop("machine", {})
    now = datetime.datetime.now()
    head = {
        "tensorrt": found.get("tensorrt"),
        "gpu": found.get("gpu"),
        "date": now.date().isoformat(),
        "time": now.strftime("%H:%M"),
        "dry_run": bool(found.get("doubles")),
        "doubles": found.get("doubles", []),
        "host": found.get("host", describe_host()),
    }
    if looked["status"] in ("error", "crashed", "timed out"):
        head["error"] = looked["error"]
    elif options.dry_run and not head["dry_run"]:
        head["error"] = (
            "--dry-run was asked for, and TensorRT and the CUDA driver here are real; leave it out to measure"
        )
    return head


def _stamp(head: dict[str, Any]) -> str:
    return f"{head['date']}-{head['time'].replace(':', '')}" + ("-dry-run" if head["dry_run"] else "")


def _start_again_on_doubles(scratch: Path) -> None:
    """Does not return: this program once more, with tests/helpers/fakecuda in the place of TensorRT and the driver."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import fakecuda
    from fakecuda import setup_env

    try:
        for part in (setup_env.libraries, setup_env.cuda_bindings, setup_env.polygraphy):
            part()
        setup_env.bindings(fakecuda.TENSORRT)
    except setup_env.Unavailable as error:
        sys.exit(f"no TensorRT, and no test doubles either: {error}")
    try:
        kernels = bool((setup_env.kernels(), setup_env.nvrtc()))
    except setup_env.Unavailable:  # one question fewer is rehearsed
        kernels = False
    environment = {**fakecuda.environment(full_name=True, kernels=kernels), _SET_UP: "1"}
    shutil.rmtree(scratch)  # nothing after the next line would
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _child(options: argparse.Namespace, models: list[Model]) -> None:
    """One step, in this process; how it went is in ``--part``."""
    die_with(options.parent)
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.seconds + 3)  # so that a step that hangs says where
    step = next(step for step in steps.all_steps(models) if step.name == options.child)
    deadline = time.monotonic() + options.seconds
    try:
        gpu = device().describe()  # before TensorRT, which crashes without a driver
        trt = versions.tensorrt()
        versions.base_class("EntropyCalibration2")
    except (NoGpu, CalibratorsUnavailable) as error:
        give_up(options.part, str(error))
        return
    doubles = test_doubles()
    machine = {"tensorrt": trt.__version__, "gpu": gpu, "doubles": doubles, "host": describe_host()}
    folder = options.part.with_suffix("")  # the parent's to remove, since a child may not get that far
    folder.mkdir()
    be_child(step, Context(trt, [*embedded(folder), *models], folder, doubles, deadline), machine, options.part)


if __name__ == "__main__":
    sys.exit(main())
