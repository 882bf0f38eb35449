"""A full disk at every write and a read error at every file, of every command that leaves a file."""

from __future__ import annotations

import ast
import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from faults import Disk, command, content, copy_of
from models import conv_model, images
from PIL import Image

from trtcal.files import atomic
from trtcal.model.file import save_model
from trtcal.passes import collect as collector

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow(reason="a fault at every write of a run")
EXHAUSTIVE = pytest.mark.exhaustive(reason="a fault at every write of a sweep")
UNFINISHED = ("settings.json", "drift.json", "stats.npz", "stats.partial.npz", "judgements.jsonl")
"""What an interrupted sweep leaves to go on from; each is checked against its key when it is read."""


def calibrate(*options: str, data: str = "x.npz") -> tuple[str, ...]:
    return ("calibrate", "m.onnx", "--data", data, "--batch-size", "4", "--workers", "1", "-o", "c.cache", *options)


def sweep(*options: str) -> tuple[str, ...]:
    grid = ("--batch-sizes", "4", "--orders", "given", "--methods", "minmax", "--growths", "double")
    return ("sweep", "m.onnx", "--data", "x.npz", "--batch-size", "4", "--workers", "1", "-o", "s", *grid, *options)


QDQ = ("qdq", "m.onnx", "--cache", "old.cache", "-o", "q.onnx")
SENSITIVITY = (
    *("sensitivity", "m.onnx", "--data", "x.npz", "--batch-size", "4", "--cache", "old.cache"),
    *("--layers", "1", "-o"),
)


class Case(NamedTuple):
    """A command, what ran in its folder before, and which of its results may be gone after a rename that failed."""

    arguments: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    weights_outside: bool = False
    fragile: tuple[str, ...] = ()


CASES = {
    "calibrate": Case(calibrate("--stats", "s.npz")),
    "calibrate over an old cache": Case(
        calibrate("--stats", "s.npz", "--no-check"),
        (calibrate("--stats", "s.npz", "--samples", "4", "--method", "minmax"),),
    ),
    "calibrate from pictures": Case(calibrate("--preset", "raw", "--no-check", data="pictures")),
    "calibrate a model with its weights outside": Case(calibrate("--no-check"), weights_outside=True),
    "sweep": Case(sweep()),
    "sweep over an old one": Case(sweep("--force"), (sweep("--samples", "6"),)),
    "qdq": Case(QDQ),
    "qdq over an old model": Case(QDQ, ((*QDQ, "--placement", "all"),)),
    "qdq with weights outside": Case(QDQ, ((*QDQ, "--placement", "all"),), True, ("q.onnx", "q.onnx.data")),
    "report": Case(
        ("report", "s"),
        (sweep(), (*SENSITIVITY, "s/sensitivity.json")),
    ),
    "sensitivity": Case((*SENSITIVITY, "sensitivity.json")),
    "contact-sheet": Case(("contact-sheet", "m.onnx", "--data", "x.npz", "-o", "seen.png")),
    "cache convert": Case(("cache", "convert", "old.cache", "-o", "ranges.txt", "--to", "int8api")),
    "cache convert to a clean model": Case(
        ("cache", "convert", "q.onnx", "-o", "back.cache", "--clean-model", "clean.onnx"), (QDQ,)
    ),
    "cache merge": Case(("cache", "merge", "old.cache", "other.cache", "-o", "both.cache")),
    "cache retarget": Case(("cache", "retarget", "old.cache", "-o", "old.cache", "--trt-version", "10.3.0")),
    "cache rename": Case(("cache", "rename", "old.cache", "--map", "conv=c", "-o", "new.cache")),
    "cache diff": Case(("cache", "diff", "old.cache", "other.cache", "--plot", "plot.html")),
}


# A sweep writes most and takes longest.
MARKS = {name: [SLOW] + [EXHAUSTIVE] * ("old" in name) for name in CASES if name.startswith("sweep")}


@pytest.fixture(params=[pytest.param(name, id=name.replace(" ", "-"), marks=MARKS.get(name, ())) for name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_folder(case, tmp_path, monkeypatch)


def made_folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What lies there before the command runs."""
    monkeypatch.setattr(collector, "SNAPSHOT_SECONDS", 0)  # a checkpoint after every batch
    monkeypatch.setattr(collector, "CHECKPOINT_SECONDS", 0)
    template = tmp_path / "template"
    (template / "pictures").mkdir(parents=True)
    size = 16 if case.weights_outside else 8  # the larger has weights that are worth a file
    save_model(conv_model(size=size), template / "m.onnx", external=case.weights_outside)
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3)).astype(np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(template / "pictures" / f"{number}.png")
    np.savez(template / "x.npz", image=images(8, size), labels=np.arange(8) % 5)
    for name, method in (("old.cache", "minmax"), ("other.cache", "mse")):
        made = calibrate("--method", method, "--no-check")
        assert command(template, *made)[0] == 0
        (template / "c.cache").rename(template / name)
        (template / "c.cache.json").unlink()
    for arguments in case.before:
        assert command(template, *arguments)[0] == 0, arguments
    return template


def struck_at_each(
    case: Case, template: Path, kind: str, error: int, *, lasting: bool, names_it: Callable[[str, str], bool]
) -> int:
    """Run the command once for each of its points, with a fault there -> how many there were."""
    before = content(template)
    with copy_of(template) as copy:
        with Disk(copy, kind) as disk:
            code, err = command(copy, *case.arguments)
        assert code == 0, err
        whole = content(copy)
        count = len(disk.points)
    with copy_of(template) as copy:
        assert command(copy, *case.arguments)[0] == 0
        assert content(copy) == whole
    again = case.arguments
    if case.arguments[0] == "sweep" and "--force" not in case.arguments:
        again = (*case.arguments, "--resume")
    for number in range(count):
        with copy_of(template) as copy:
            with Disk(copy, kind, at=number, error=error, lasting=lasting) as disk:
                code, err = command(copy, *case.arguments)
            struck, left = disk.struck, content(copy)
            assert struck is not None
            where = f"{struck} (point {number} of {count}): {err}"
            if code == 0:  # what failed was not needed
                assert left == whole, where
            else:
                assert code == 2, where
                assert names_it(struck, err.splitlines()[-1]), where
                check_left(case, before, whole, left, struck)
            code, err = command(copy, *again)
            assert code == 0, f"again after {where}: {err}"
            assert content(copy) == whole, where
    return count


def check_left(
    case: Case, before: dict[str, bytes], whole: dict[str, bytes], left: dict[str, bytes], struck: str
) -> None:
    for name, data in left.items():
        if Path(name).name not in UNFINISHED and not name.endswith(".partial.npz"):
            assert data in (before.get(name), whole.get(name)), f"{struck}: {name} is neither the old nor the new one"
    asked_to_go = {name for name in before if name.startswith("s/")} if "--force" in case.arguments else set()
    fragile = set(case.fragile) if struck.startswith("replace") else set()
    assert before.keys() - left.keys() <= asked_to_go | fragile, f"{struck}: lost"


@pytest.mark.parametrize(
    "lasting",
    [
        True,
        pytest.param(
            False,
            marks=(
                SLOW,
                EXHAUSTIVE,
            ),
        ),
    ],
    ids=["stays-full", "once"],
)
def test_a_full_disk_at_any_write_loses_nothing(case: Case, folder: Path, lasting: bool) -> None:
    def names_an_output(struck: str, message: str) -> bool:
        return message.startswith("trtcal: error: ") and any(
            Path(name).name in message for name in (*case.arguments, "settings.json", "trials", "stats", "report.html")
        )

    assert struck_at_each(case, folder, "write", errno.ENOSPC, lasting=lasting, names_it=names_an_output) > 3


def test_a_file_that_cannot_be_read_is_named(case: Case, folder: Path) -> None:
    def names_the_file(struck: str, message: str) -> bool:
        return message.startswith("trtcal: error: ") and Path(struck.split()[1]).name in message

    assert struck_at_each(case, folder, "read", errno.EIO, lasting=False, names_it=names_the_file) > 1


@SLOW
@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_build_on_a_disk_that_fails_loses_nothing(tmp_path: Path, kind: str) -> None:
    """`trtcal build` with a calibration, an engine and a timing cache, on the fake driver."""
    import fakecuda
    from fakecuda.models import SHAPE, onnx_model

    template = tmp_path / "template"
    template.mkdir()
    (template / "m.onnx").write_bytes(onnx_model())
    np.save(template / "x.npy", np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32))
    found = fakecuda.drive(
        template,
        """
        import errno
        from faults import Disk, command, content, copy_of
        template, kind = Path(sys.argv[1]), sys.argv[2]
        fault = {"write": errno.ENOSPC, "read": errno.EIO}[kind]
        flags = "--onnx m.onnx --engine m.engine --calib_input x.npy --calib_batch_size 4".split()
        flags += "--calib_cache c.cache --timing-cache t.cache --precision int8".split()
        (template / "t.cache").write_bytes(b"TRTFAKE-TIMINGS of an earlier build")
        (template / "m.engine").write_bytes(b"TRTFAKE-PLAN of an earlier build")
        before = content(template)
        with copy_of(template) as copy:
            with Disk(copy, kind) as disk:
                code, err = command(copy, *flags, build=True)
            assert code == 0, err
            whole = content(copy)
        wrong = []
        for number in range(len(disk.points)):
            with copy_of(template) as copy:
                with Disk(copy, kind, at=number, error=fault, lasting=kind == "write") as struck:
                    code, err = command(copy, *flags, build=True)
                left = content(copy)
                named = err.splitlines()[-1]
                parts = {name for name in left if left[name] not in (before.get(name), whole.get(name))}
                if code == 0 and left != whole:
                    wrong.append([struck.struck, "an incomplete build said it was complete"])
                if code != 0 and (code != 2 or not named.startswith("build: error: ") or ".tmp" in named):
                    wrong.append([struck.struck, code, err])
                if code != 0 and not any(name in named for name in ("cache", "m.onnx", "x.npy", "m.engine")):
                    wrong.append([struck.struck, "names no file", named])
                if parts or before.keys() - left.keys():
                    wrong.append([struck.struck, "left", sorted(parts), sorted(left)])
                code, err = command(copy, *flags, build=True)
                again = content(copy)
                if code != 0 or again != whole:
                    wrong.append([struck.struck, "again", code, err, sorted(again)])
        report(points=disk.points, wrong=wrong, live=live())
        """,
        str(template),
        kind,
    )
    assert found["wrong"] == []
    assert len(found["points"]) > 8
    assert found["live"] == {}


# --- the same from the kernel: a limit on the size of files is a disk that is full for real


@pytest.mark.parametrize(
    "name", ["calibrate over an old cache", "qdq with weights outside", "cache diff", "sensitivity"]
)
def test_a_limit_of_the_kernel_s_loses_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    template = made_folder(case, tmp_path, monkeypatch)
    before = content(template)
    with copy_of(template) as copy:
        assert command(copy, *case.arguments)[0] == 0
        whole = content(copy)
    sizes = sorted({len(whole[name]) for name in whole if whole[name] != before.get(name)})
    limits = sorted({*(size - 1 for size in sizes), *(size // 2 for size in sizes), 0})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    for limit in limits:
        with copy_of(template) as copy:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))  # Python ignores SIGXFSZ, so a write says EFBIG
            try:
                code, err = command(copy, *case.arguments)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
            left = content(copy)
            if code:
                failed += 1
                assert code == 2
                assert "cannot be written: File too large" in err, err
                check_left(case, before, whole, left, f"limit {limit}")
            else:
                assert left == whole
            assert command(copy, *case.arguments)[0] == 0
            assert content(copy) == whole
    assert failed


# --- out of memory


@pytest.mark.parametrize(
    "place",
    [
        "trtcal.model.runner.OrtRunner.__call__",
        "trtcal.passes.collector.Collector.add",
        "trtcal.ranges.histogram.HistogramBuilder.add",
    ],
)
def test_a_run_out_of_memory_says_so_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    case = CASES["calibrate over an old cache"]
    template = made_folder(case, tmp_path, monkeypatch)
    before = content(template)
    with copy_of(template) as copy:
        assert command(copy, *case.arguments)[0] == 0
        whole = content(copy)
    failed = 0
    for after in (0, 1, 2, 5, 30):
        with copy_of(template) as copy, monkeypatch.context() as patch:
            patch.setattr(place, exhausted(place, after))
            code, err = command(copy, *case.arguments)
            patch.undo()
            if code:
                failed += 1
                assert (code, err.splitlines()[-1][:29]) == (2, "trtcal: error: out of memory;")
                check_left(case, before, whole, content(copy), place)
            assert command(copy, *case.arguments)[0] == 0
            assert content(copy) == whole
    assert failed > 1


def exhausted(place: str, after: int) -> Callable[..., Any]:
    """A method -> the same, which raises MemoryError once it was called so often."""
    import importlib

    module, name, method = place.rsplit(".", 2)
    real = getattr(getattr(importlib.import_module(module), name), method)
    calls = iter(range(after))

    def call(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) is None:
            raise MemoryError
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("race", ["--race", "--no-race"])
def test_a_sweep_out_of_memory_is_no_sweep_with_failed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race: str
) -> None:
    case = CASES["sweep"]
    template = made_folder(case, tmp_path, monkeypatch)
    judging = "trtcal.sweep.cpu_judge.CpuJudge.go_on"
    with monkeypatch.context() as patch:
        patch.setattr(judging, exhausted(judging, 1))
        arguments = [*case.arguments[:-6], "--batch-sizes", "1,4", "--growths", "double", race]
        code, err = command(template, *arguments)
    assert code == 2
    assert "out of memory" in err
    assert not (template / "s" / "trials.json").exists()


# --- two at once


@pytest.mark.parametrize("name", ["calibrate", "sweep", "qdq"])
def test_of_two_runs_with_one_output_one_wins_and_the_other_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    template = made_folder(case, tmp_path, monkeypatch)
    said = []

    def meanwhile(point: str) -> None:
        if not said and point.startswith("write"):
            said.append("")  # the second must not start a third
            said.append(command(template, *case.arguments))

    with Watched(template, meanwhile):
        code, err = command(template, *case.arguments)
    assert code == 0, err
    assert said[1][0] == 2
    assert "another run is writing it; wait for that one, or choose another name" in said[1][1]
    assert not [path for path in content(template) if path.endswith((".lock", ".tmp"))]


class Watched(Disk):
    """Tells of each write before it is done."""

    def __init__(self, root: Path, tell: Callable[[str], None]) -> None:
        super().__init__(root)
        self.tell = tell

    def point(self, kind: str, call: str, path: object, before: Callable[[], Any] = lambda: None) -> None:
        self.tell(f"{call} {path}")


@SLOW
def test_of_two_builds_with_one_engine_or_cache_one_wins(tmp_path: Path) -> None:
    import fakecuda

    found = fakecuda.drive(
        tmp_path,
        """
        Path("m.onnx").write_bytes(onnx_model())
        from trtcal.model.overwriting import only_writer
        def tried(engine, cache):
            calibrator = EntropyCalibrator(batches(2), cache=cache, model="m.onnx", data_key="d")
            return failure(lambda: build_engine("m.onnx", engine, calibrator=calibrator))
        with only_writer("a.engine"):
            engine = tried("a.engine", "a.cache")
        with only_writer("a.cache"):
            cache, other = tried("b.engine", "a.cache"), tried("b.engine", "b.cache")
        with only_writer("b.cache"):  # which is up to date, and so only read
            read = tried("c.engine", "b.cache")
        report(engine=engine, cache=cache, other=other, read=read, left=sorted(os.listdir(".")), live=live())
        """,
    )
    for name in ("engine", "cache"):
        assert found[name]["type"] == "OutputError"
        assert "another run is writing it" in found[name]["message"]
    assert found["other"] is None
    assert found["read"] is None
    assert found["left"] == ["b.cache", "b.cache.json", "b.engine", "c.engine", "m.onnx"]
    assert found["live"] == {}


# --- what a killed run leaves


def test_a_temporary_file_of_a_killed_run_goes_after_an_hour(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f".trtcal-{digit * 16}.tmp" for digit in "abc")
    strange = tmp_path / ".trtcal-x.tmp"
    for path in (old, new, strange):
        path.write_bytes(b"")
    other.mkdir()
    written = new.stat().st_mtime
    for path in (old, strange, other):
        os.utime(path, (written - 2 * atomic.STALE_SECONDS,) * 2)
    atomic.write_bytes(tmp_path / "a", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"a", new.name, strange.name, other.name}


def test_a_lock_of_a_killed_run_binds_nobody_and_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = made_folder(CASES["calibrate"], tmp_path, monkeypatch)
    (template / ".c.cache.lock").touch()
    assert command(template, *CASES["calibrate"].arguments)[0] == 0
    assert not (template / ".c.cache.lock").exists()


# --- no write goes past trtcal/files/atomic.py


WRITERS = {"savez", "savez_compressed", "tofile", "write_html", "write_image", "write_text", "save_model", "dump"}
NOT_RESULTS = {
    ("trtcal/model/overwriting.py", "TemporaryFile"),  # whether a folder takes files at all
    ("trtcal/sweep/journal.py", "open"),  # the journal: a line that is cut off is not read
    ("trtcal/files/atomic.py", "open"),
    ("trtcal/model/file.py", "save_model"),  # ours, which calls atomic
    ("trtcal/qdq/file.py", "save_model"),
    ("trtcal/refine/file.py", "save_model"),
    ("trtcal/cache/formats/qdq_model.py", "save_model"),
    ("trtcal/ranges/stats.py", "savez_compressed"),  # these into memory
    ("trtcal/refine/file.py", "savez"),
    ("trtcal/ranges/stats.py", "open"),
}


def writing_calls(source: str) -> set[str]:
    """Python source -> names of the calls in it that write to the disk, or may."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        of = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        texts = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        opens = name == "open" and any(isinstance(t, str) and set(t) & set("wax+") and len(t) <= 3 for t in texts)
        method = name == "write_bytes" and of not in ("", "atomic")
        saves = name == "save" and of in ("np", "numpy", "onnx", "torch", "image", "figure")
        if opens or method or saves or name in WRITERS or name in ("TemporaryFile", "NamedTemporaryFile"):
            found.add(name)
    return found


def test_every_file_is_written_by_way_of_atomic() -> None:
    files = [path for package in ("trtcal", "calibrators") for path in (ROOT / package).rglob("*.py")]
    found = {
        (path.relative_to(ROOT).as_posix(), call) for path in files for call in writing_calls(path.read_text("utf-8"))
    }
    assert found <= NOT_RESULTS | {("trtcal/samples/contact_sheet.py", "save")}, (
        "write it with trtcal.files.atomic"
    )  # PNG in memory
    for line in ("open(p, 'w')", "p.open(mode='xb')", "np.savez(f, a)", "p.write_bytes(b)", "onnx.save(m, p)"):
        assert writing_calls(line), line
    assert not writing_calls("open(p, 'rb'); atomic.write_bytes(p, b); write_bytes(p, b); cache.save(p)")
