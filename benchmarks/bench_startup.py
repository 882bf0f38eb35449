"""Wall seconds of ``trtcal --help`` and ``trtcal demo`` in fresh processes.

python benchmarks/bench_startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from page import parser, publish, table, verdict

LIMITS = {"--help": (0.35, 0.25), "demo": (10.0, 5.0)}  # seconds: must, aim
HEAVY = ("numpy", "onnx", "onnxruntime", "numba", "rich", "PIL")


def seconds(*command: str) -> float:
    """Command -> wall seconds of a process that runs it in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - start


def loaded() -> str:
    """Which of the heavy packages ``trtcal --help`` imports."""
    code = f"""
import atexit, sys
from trtcal.cli import main
atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules] or ["none"]))
sys.argv = ["trtcal", "--help"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    options = parser(__doc__).parse_args()
    trtcal = (sys.executable, "-m", "trtcal")
    rows = []
    for argument, repeat in (("--help", 1 if options.quick else 10), ("demo", 0 if options.quick else 3)):
        taken = [seconds(*trtcal, argument) for _ in range(repeat)]
        if not taken:
            continue
        must, aim = LIMITS[argument]
        median, judged = statistics.median(taken), "too few to say"
        if not options.quick:
            judged = verdict(median, must, aim)
        cells = [f"`trtcal {argument}`", f"<= {must:g} s", f"{aim:g} s", f"**{median:.2f} s**", f"{min(taken):.2f} s"]
        rows.append([*cells, repeat, judged])
    bare = statistics.median(seconds(sys.executable, "-c", "pass") for _ in range(3))
    lines = table(["", "must", "aim", "median", "best", "runs", ""], rows)
    lines += [f"Python itself takes {bare:.2f} s. Heavy packages that `--help` imports: {loaded()}."]
    publish(__file__, lines, options, ["trtcal", "typer"])


if __name__ == "__main__":
    main()
