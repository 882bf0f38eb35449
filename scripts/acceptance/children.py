"""Each step in a process of its own: what crashes or hangs there takes nothing else with it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acceptance.findings import Context, Skip, Step, as_rehearsed, status
from trtcal.files.atomic import write_bytes

_LOOKS = 0.2  # seconds between two looks at what a step has found so far
_SPARE = 5.0  # seconds a step is told to have less than it has
_LOG_LINES = 20
_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl(2)


def run_step(
    step: Step, command: Sequence[str], scratch: Path, seconds: float, show: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """A step and the command that runs it here -> its result; ``show`` is handed what there is, again and again."""
    part, log = scratch / f"{step.name}.json", scratch / f"{step.name}.log"
    begin = time.monotonic()
    arguments = ["--child", step.name, "--part", str(part), "--seconds", f"{max(seconds - _SPARE, 1):.1f}"]
    arguments += ["--parent", str(os.getpid())]
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, *arguments], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        seen = -1
        try:
            while True:
                try:
                    code: int | None = child.wait(_LOOKS)
                    break
                except subprocess.TimeoutExpired:
                    found = _read(part)
                    if len(found["findings"]) != seen:
                        seen = len(found["findings"])
                        show(_result(step, found, "running", begin))
                    if time.monotonic() - begin > seconds:
                        code = None
                        break
        finally:
            _end(child)
    found = _read(part)
    if code is None:
        result = _result(step, found, "timed out", begin)
        result["error"] = _with_log(f"did not end within {seconds:.0f} s", log)
    elif code or not found.get("done"):
        result = _result(step, found, "crashed", begin)
        result["error"] = _with_log(_how_it_ended(code), log)
    else:
        result = _result(step, found, found["status"], begin)
        if found.get("error"):
            result["error"] = found["error"]
    return result


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it has started; its process group is its own."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _how_it_ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}, and unfinished"


def _with_log(words: str, log: Path) -> str:
    """Words and the end of what the child printed; where it hung, its stack is there."""
    return "\n".join([words, *log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]])


def _read(part: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"findings": []}
    return found


def _result(step: Step, found: dict[str, Any], word: str, begin: float) -> dict[str, Any]:
    return {
        "what": step.what,
        "status": word,
        "seconds": round(time.monotonic() - begin, 1),
        **{key: found[key] for key in ("machine",) if key in found},
        "findings": found["findings"],
    }


def give_up(part: Path, reason: str) -> None:
    """Say that there is nothing to ask here."""
    write_bytes(part, json.dumps({"findings": [], "done": True, "status": "error", "error": reason}).encode())


def die_with(parent: int) -> None:
    """From now on, on Linux, the end of the process ``parent``, however it comes, is this one's too.

    A parent that is killed cannot end its child, and a step that hangs would keep the GPU.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it was gone before it could be said
        os.kill(os.getpid(), signal.SIGKILL)


def be_child(step: Step, context: Context, machine: dict[str, Any], part: Path) -> None:
    """Run a step here, and keep every finding in ``part`` the moment there is one."""
    found: dict[str, Any] = {"machine": machine, "findings": []}

    def keep(**more: Any) -> None:
        found.update(more)
        write_bytes(part, json.dumps(found, default=str).encode())

    keep()
    try:
        for finding in step.run(context):
            found["findings"].append((as_rehearsed(finding) if context.doubles else finding).plain())
            keep()
        keep(done=True, status=status(found["findings"]))
    except Skip as reason:
        keep(done=True, status="skipped", error=str(reason))
    except Exception:
        keep(done=True, status="error", error=traceback.format_exc())
