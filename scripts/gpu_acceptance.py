#!/usr/bin/env python3
"""Runs the tests marked gpu on a GPU, the most telling first, within a time limit, and keeps what they find.

    python scripts/gpu_acceptance.py                            all of tests/gpu, as far as the seconds reach
    python scripts/gpu_acceptance.py tests/gpu/test_kernel.py   what needs no TensorRT
    python scripts/gpu_acceptance.py -k "rules or calls"        as pytest takes it
    python scripts/gpu_acceptance.py --model fashion/cnn.onnx --model text.onnx,lines.npz
    python scripts/gpu_acceptance.py --dry-run                  on test doubles; measures nothing

Writes gpu-acceptance-DATE-TIME.json and .md into benchmarks/results, both complete after every test: a run that is
killed leaves all up to the test before. pytest runs in a process of its own. One that crashes, hangs or loses the GPU
costs the test that did it, and the rest runs in a new process. Test doubles are found by looking at the loaded
libraries; what they answer is not measured. The exit code is 0 where all is well, 1 where something failed or was not
run, and 2 where there is nothing to measure on. What the tests are for: docs/parity.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "tests" / "helpers"
sys.path[:0] = [str(ROOT), str(HELPERS)]  # this checkout, whatever is installed

from trtcal.files.atomic import write_bytes  # noqa: E402

# First what needs no TensorRT, then what most rests on; costs last.
ORDER = ("kernel", "layers", "rules", "calls", "batches", "parity", "calibrators", "statistics", "engine", "costs")
BUDGET = 450  # seconds
PATIENCE = 4  # times as long as it says it takes, and
LEAST = 30  # seconds, a test may take
STARTING = 120  # seconds until the first test: TensorRT's libraries are loaded
FINE = {"passed", "skipped", "not measured"}


class Record:
    """One JSON file and the page made from it, each replaced in one piece by `save`."""

    def __init__(self, folder: Path) -> None:
        now = datetime.datetime.now()
        self.folder, self.stem = folder, f"gpu-acceptance-{now:%Y-%m-%d-%H%M%S}"
        self.tests: dict[str, dict[str, Any]] = {}
        self.data: dict[str, Any] = {"date": f"{now:%Y-%m-%d}", "dry_run": False, "doubles": [], "tests": self.tests}

    def save(self) -> Path:
        """Both files, for what there is so far -> the page's path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self.stem}{'-dry-run' if self.data['dry_run'] else ''}.json"
        write_bytes(file, f"{json.dumps(self.data, indent=1, ensure_ascii=False, default=str)}\n".encode())
        write_bytes(file.with_suffix(".md"), ("\n".join(page(self.data)) + "\n").encode())
        return file.with_suffix(".md")

    def update(self, machine: dict[str, Any]) -> None:
        """What is known of the machine; test doubles, once seen, are never forgotten."""
        doubles = machine.pop("doubles", []) or self.data["doubles"]
        self.data |= machine | {"doubles": doubles, "dry_run": bool(doubles)}


def page(data: dict[str, Any]) -> Iterator[str]:
    """A record -> the lines of its page."""
    gpu = data.get("gpu") or {}
    yield f"# GPU acceptance, {data['date']}\n"
    if data["dry_run"]:
        yield f"**Dry run on test doubles** ({', '.join(data['doubles'])}): this says nothing about TensorRT.\n"
    else:
        versions = f"driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}"
        yield f"TensorRT {data.get('tensorrt')}, {gpu.get('name')}, {versions}.\n"
    yield ", ".join(f"{name} {version}" for name, version in data.get("host", {}).items()) + "."
    if data.get("error"):
        yield f"\n```text\n{data['error']}\n```"
    files: dict[str, dict[str, dict[str, Any]]] = {}
    for name, test in data["tests"].items():
        file, _, rest = name.partition("::")
        files.setdefault(file, {})[rest] = test
    yield "\n| file | outcomes | seconds |\n|---|---|---|"
    for file, tests in files.items():
        counts = Counter(test["outcome"] for test in tests.values())
        seconds = sum(test.get("seconds", 0) for test in tests.values())
        yield f"| {file} | {', '.join(f'{number} {word}' for word, number in counts.items())} | {seconds:.1f} |"
    for file, tests in files.items():
        yield f"\n## {file}\n\n| test | outcome | seconds | found |\n|---|---|---|---|"
        for name, test in tests.items():
            outcome = test["outcome"] if test["outcome"] in FINE else f"**{test['outcome']}**"
            found = [f"{key}: {_cell(value)}" for key, value in test.get("facts", {}).items()]
            lines = test.get("error", test.get("why", "")).splitlines()
            wrong = [line[1:].strip() for line in lines if line.startswith("E ")]  # as pytest marks them
            found += [_cell(" ".join(wrong or lines[:3]))]
            yield f"| {_cell(name)} | {outcome} | {test.get('seconds', '')} | {'; '.join(filter(None, found))} |"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 300 else f"{text[:297]}..."
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


class Run:
    """One process that runs pytest, with tests/helpers/gpu_plugin.py in it, and what it has told so far."""

    def __init__(self, record: Record, options: argparse.Namespace, deadline: float, scratch: Path) -> None:
        self.record, self.options, self.deadline = record, options, deadline
        self.events, self.log = scratch / "events", scratch / "log"
        self.running: tuple[str | None, float] = None, time.monotonic()  # a test, or none, and since when
        self.ended = 0  # tests
        self.finished = False
        self._read = 0

    def go(self) -> None:
        """Until pytest ends, by itself or not; the test that ends it is in the record as crashed or timed out."""
        self.events.write_bytes(b"")
        with self.log.open("wb") as log:
            environment, command = self._environment(), self._command()
            child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                why = self._watch(child)
            finally:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
        self._take()
        ending = why or (f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        stacks = [number for number, line in enumerate(lines) if line.startswith(("Fatal", "Thread", "Current thread"))]
        begin = stacks[0] if stacks else max(len(lines) - 30, 0)
        error = "\n".join([ending, *lines[begin : begin + 30]])
        name, since = self.running
        if name is not None:
            outcome = "timed out" if why else "crashed"
            self._put(name, {"outcome": outcome, "seconds": round(time.monotonic() - since, 2), "error": error})
        elif not (self.ended or self.finished) or (code not in (0, 1) and not (code == 5 and self.record.tests)):
            self.record.data.setdefault("error", error)  # 5: no test was left

    def _environment(self) -> dict[str, str]:
        plan = {"events": str(self.events), "parent": os.getpid(), "dry_run": self.options.dry_run}
        plan["deadline"] = time.time() + self.deadline - time.monotonic()
        plan["done"] = [name for name, test in self.record.tests.items() if test["outcome"] != "not run"]
        paths = [str(HELPERS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"GPU_ACCEPTANCE": json.dumps(plan), "PYTHONPATH": os.pathsep.join(paths)}
        # What else is installed or set there is not ours.
        return os.environ | own | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--rootdir", ".", "-p", "gpu_plugin"]
        command += ["-m", "gpu", "-qs", "--color=no", "-p", "no:cacheprovider"]
        # One after the other; and other versions warn of other things.
        command += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings="]
        command += ["-k", self.options.k] if self.options.k else []
        return command + (self.options.tests or [f"tests/gpu/test_{name}.py" for name in ORDER])

    def _watch(self, child: subprocess.Popen[bytes]) -> str | None:
        """Read on until the child ends -> why it is not to end by itself; None where it did."""
        while child.poll() is None:
            time.sleep(0.05)
            self._take()
            name, since = self.running
            limit = STARTING if name is None else PATIENCE * self.record.tests[name]["estimate"]
            now = time.monotonic()
            if now > since + max(limit, self.options.least) or (name is not None and now > self.deadline):
                child.send_signal(signal.SIGUSR1)  # the stacks of its threads go to the log
                time.sleep(0.5)
                return f"did not end within {now - since:.0f} s"
        return None

    def _take(self) -> None:
        """What has been told since the last time."""
        with self.events.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    self._hear(json.loads(line))

    def _hear(self, event: dict[str, Any]) -> None:
        self.record.update(event.get("machine", {}))
        for name, seconds in event.get("collected", []):
            self.record.tests.setdefault(name, {"outcome": "not run", "estimate": seconds})
        self.running = event.get("begin"), time.monotonic()
        if "end" in event:
            self._put(event["end"], event["result"])
        self.finished = "finished" in event

    def _put(self, name: str, result: dict[str, Any]) -> None:
        self.ended += 1
        self.record.tests[name] |= result
        self.record.save()
        print(f"{result['seconds']:6.1f} s  {result['outcome']:12}  {name}", flush=True)


def main() -> int:
    """Run what the command line asks for -> exit code."""
    options = _options()
    begin = time.monotonic()
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    if options.dry_run:
        _set_up_doubles()
    models = [",".join(str(Path(part).resolve()) for part in text.split(",")) for text in options.model]
    os.environ["TRTCAL_GPU_MODELS"] = "\n".join(models)
    record, again = Record(options.output), True
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as scratch:
        while again:
            run = Run(record, options, begin + options.seconds, Path(scratch))
            run.go()
            again = not run.finished and run.ended > 0 and time.monotonic() < run.deadline
    page_path = record.save()
    print(record.data.get("error") or page_path)
    if record.data.get("gpu") is None or not record.tests:
        return 2
    return 0 if "error" not in record.data and {test["outcome"] for test in record.tests.values()} <= FINE else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", help="files or tests, as pytest takes them (default: all of tests/gpu)")
    parser.add_argument("-k", metavar="EXPRESSION", help="only tests whose names match, as pytest takes it")
    parser.add_argument("--dry-run", action="store_true", help="on test doubles")
    model = "MODEL.onnx[,DATA.npz[,LABELLED.npz]]"
    beside = "a further model; by default with calibration.npz and, if there is one, labelled.npz beside it"
    parser.add_argument("--model", action="append", default=[], metavar=model, help=beside)
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for all tests (default: %(default)s)")
    parser.add_argument("--least", type=float, default=LEAST, help="what any test may take (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    return parser.parse_args()


def _set_up_doubles() -> None:
    """tests/helpers/fakecuda in the place of TensorRT and the driver, for the processes that are started."""
    import fakecuda
    import pytest

    found: dict[str, str] = {}
    for kernels in (True, False):  # without a compiler for kernels there are the other tests
        try:
            found = found or fakecuda.environment(full_name=True, kernels=kernels)
        except pytest.skip.Exception as missing:
            if not kernels:
                sys.exit(f"no test doubles: {missing}")
    os.environ.clear()
    os.environ.update(found)


if __name__ == "__main__":
    sys.exit(main())
