"""Holds the direction of imports that docs/design.md draws. The tables come first: change them on purpose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# Rooms of trtcal/: a file imports only from rooms before its own, and within a room without going round in a circle.
# A room is a folder, or one of the few files that stand in trtcal/ itself.
ROOMS = (
    *("errors", "spec", "doctor"),
    *("files", "samples", "ranges", "model", "passes", "qdq", "cache", "calibration", "judging", "refine"),
    *("sweep", "cluster", "zoo", "demo", "cli", "__main__"),
)

# calibrators/ is one room; its files import only from rows above their own. calibrators/__init__.py shows what lies
# above it and has a row.
ROWS = (
    ("versions", "nvrtc", "intake", "first_error", "store", "inspection", "overwriting", "layout"),
    ("memory", "shapes", "coverage", "trtlog"),
    ("buffers",),
    ("device_kernels", "execution", "feed", "visible"),
    ("gpu_stats", "runner"),
    ("calibrator",),
    ("cached", "tensorrt_methods"),
    ("engine", "percentile"),
    ("judging", "options", "calibrators"),
    ("command",),
)

# Packages that are slow to import or not always there -> the files of trtcal/ (or the rooms) that may import them.
OWNERS: dict[str, set[str]] = {
    "PIL": {"samples.preprocess", "samples.contact_sheet"},
    "pillow_heif": {"samples.preprocess"},
    "mlflow": {"sweep.tracking"},
    "numba": {"ranges.kernels"},
    "onnx": {"model", "qdq", "cache.formats", "refine"},
    "onnxruntime": {"model.runner"},
    "ray": {"cluster.ray_cluster"},
    "fsspec": {"files.remote"},
    "yaml": {"zoo.file"},
    "rich": {"cli"},
    "torch": set(),
    "typer": {"cli"},
}

# What only calibrators/ may import. A command that needs a GPU imports calibrators when it runs.
FRONTIER = {"calibrators", "cuda", "cupy", "pycuda", "tensorrt"}
MAY_IMPORT_CALIBRATORS_IN_A_FUNCTION = {"cli"}

# Files whose test has another name than theirs; the public surface is tested as such.
TESTED_ELSEWHERE = {
    "trtcal/__main__.py": "cli/test_cli.py",
    "trtcal/__init__.py": "test_public_api.py",
    "trtcal/errors.py": "test_public_api.py",
    "trtcal/spec.py": "samples/test_options.py",
    "trtcal/cluster/ray_cluster.py": "cluster/test_distributed.py",
    "trtcal/cluster/shards.py": "cluster/test_distributed.py",
    "trtcal/zoo/page.py": "zoo/test_run.py",
    "trtcal/cli/common.py": "cli/test_cli.py",
    "calibrators/__init__.py": "calibrators/test_calibrators.py",
}

# Files that their tests reach through others, and the name by which they do.
REACHED_BY = {
    "trtcal/__main__.py": '"-m", "trtcal"',
    "trtcal/cli/common.py": "run",
    "calibrators/calibrator.py": "MinMaxCalibrator",
    "trtcal/cluster/shards.py": "trtcal.cluster.distributed",
    "calibrators/visible.py": "calibrators.gpu_stats",
}


class Import(NamedTuple):
    file: Path
    line: int
    target: str  # dotted: trtcal.cache.cache, PIL.Image
    in_function: bool
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}"


FILES = sorted(path for package in ("trtcal", "calibrators") for path in (ROOT / package).rglob("*.py"))


def parsed(file: Path) -> ast.Module:
    """Path -> its syntax tree. CPython 3.11 may raise SystemError for any source, and does not twice (gh-106905)."""
    source = file.read_text(encoding="utf-8")
    try:
        return ast.parse(source)
    except SystemError:
        return ast.parse(source)


def imports(file: Path) -> list[Import]:
    def visit(node: ast.AST, in_function: bool, for_types_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, in_function, for_types_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                yield Import(file, node.lineno, f"{node.module}.{alias.name}", in_function, for_types_only)
        in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types_only |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function, for_types_only)

    return list(visit(parsed(file), False, False))


def dotted(file: Path) -> str:
    """Path -> its name in its package: trtcal/cache/doctor.py -> cache.doctor, trtcal/cache/__init__.py -> cache."""
    parts = file.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(file: Path) -> str:
    """Path -> the folder or file of its package that it stands in; "" for the package's own __init__."""
    return dotted(file).split(".")[0]


def in_package(package: str) -> list[Import]:
    return [found for file in FILES if file.is_relative_to(ROOT / package) for found in imports(file)]


def rooms_of(package: str) -> set[str]:
    return {room(file) for file in FILES if file.is_relative_to(ROOT / package)} - {""}


def imported(found: Import, package: str) -> str | None:
    """What an import wants from a package, as a dotted name in it; None for another package, or its version."""
    root, _, rest = found.target.partition(".")
    return rest if root == package and rest and rest != "__version__" else None


def test_the_rooms_are_those_that_are_there() -> None:
    assert len(ROOMS) == len(set(ROOMS))
    assert set(ROOMS) == rooms_of("trtcal")
    flat = [name for row in ROWS for name in row]
    assert len(flat) == len(set(flat))
    assert set(flat) == rooms_of("calibrators") | {"calibrators"}


def test_nothing_stands_in_trtcal_itself_but_these() -> None:
    there = {path.stem for path in (ROOT / "trtcal").glob("*.py")}
    assert there == {"__init__", "__main__", "errors", "spec", "doctor"}


def test_every_room_says_in_one_sentence_what_it_is_for() -> None:
    for folder in (ROOT / "trtcal").glob("*/"):
        if (folder / "__init__.py").exists():
            said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
            assert said, folder


def test_imports_point_up_the_list_of_rooms() -> None:
    wrong = []
    for found in in_package("trtcal"):
        wanted = imported(found, "trtcal")
        own = room(found.file)
        if wanted is None or not own:  # trtcal/__init__.py is above and below everything
            continue
        other = wanted.split(".")[0]
        assert other in ROOMS or not (ROOT / "trtcal" / other).exists(), other
        # What is no room is a class or function that the package itself shows, from wherever.
        if other not in ROOMS or ROOMS.index(other) > ROOMS.index(own):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_imports_within_a_room_go_round_in_a_circle() -> None:
    names = {f"trtcal.{dotted(file)}": file for file in FILES if file.is_relative_to(ROOT / "trtcal") and dotted(file)}
    needs: dict[str, set[str]] = {}
    for name, file in names.items():
        targets = [found.target for found in imports(file) if not found.for_types_only]
        needs[name] = {t if t in names else t.rpartition(".")[0] for t in targets} & names.keys() - {name}
    while free := [name for name, others in needs.items() if not others]:
        needs = {name: others - set(free) for name, others in needs.items() if name not in free}
    assert not needs, f"these import each other: {sorted(needs)}"


def test_imports_within_calibrators_point_up_its_rows() -> None:
    height = {name: number for number, names in enumerate(ROWS) for name in names}
    wrong = []
    for found in in_package("calibrators"):
        wanted, own = imported(found, "calibrators"), room(found.file) or "calibrators"
        if wanted is None or (other := wanted.split(".")[0]) == own:
            continue
        # What is no file is a class or function that the package itself shows.
        if height.get(other, height["calibrators"]) >= height[own]:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_a_heavy_package_is_imported_by_its_owner_alone() -> None:
    wrong = []
    for found in in_package("trtcal"):
        owners = OWNERS.get(found.target.split(".")[0])
        own = dotted(found.file)
        if owners is None or found.for_types_only:
            continue
        if not any(own == owner or own.startswith(f"{owner}.") for owner in owners):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_trtcal_knows_no_tensorrt_and_no_cuda() -> None:
    wrong = [
        str(found)
        for found in in_package("trtcal")
        if (package := found.target.split(".")[0]) in FRONTIER
        and not (
            package == "calibrators" and found.in_function and room(found.file) in MAY_IMPORT_CALIBRATORS_IN_A_FUNCTION
        )
    ]
    assert not wrong, "\n".join(wrong)


def its_test(file: Path) -> Path:
    """A file's test: in the same folders, but that all of a folder in a room (report/, formats/) has one test."""
    name = file.relative_to(ROOT).as_posix()
    if name in TESTED_ELSEWHERE:
        return ROOT / "tests" / TESTED_ELSEWHERE[name]
    if name.startswith("calibrators/"):
        return ROOT / "tests" / "calibrators" / f"test_{room(file)}.py"
    parts = dotted(file).split(".")
    if parts[0] in ("demo", "cli"):  # small enough to be tested as one
        return ROOT / "tests" / parts[0] / f"test_{parts[0]}.py"
    return (
        ROOT.joinpath("tests", *parts[:1], f"test_{parts[1]}.py")
        if parts[1:]
        else ROOT / "tests" / f"test_{parts[0]}.py"
    )


def is_test_of(test: Path, file: Path) -> bool:
    """Has a file's test a test function, and does it import the file or name something public that is defined there?

    Names are looked for as words, since programs for processes of their own are text in a test.
    """
    if not test.is_file():
        return False
    source = test.read_text(encoding="utf-8")
    package = file.relative_to(ROOT).parts[0]  # in a folder of a room, and in calibrators/, a folder counts as one file
    parts = dotted(file).split(".")[: 2 if package == "trtcal" else 1]
    module = ".".join(filter(None, [package, *parts]))
    names = {module, REACHED_BY.get(file.relative_to(ROOT).as_posix(), module)}
    for node in parsed(file).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            names.add(node.name)
    words = "|".join(map(re.escape, names))
    named = re.search(rf"(?<!\w)({words})(?!\w)", source) or any(found.target == module for found in imports(test))
    return bool(named and re.search(r"^def test_", source, re.MULTILINE))


def test_every_file_has_its_test() -> None:
    whole = {"demo", "cli"}  # one test for all of it
    own = [file for file in FILES if file.name != "__init__.py" or (dotted(file) and "." in dotted(file))]
    missing = {
        f"{its_test(file).relative_to(ROOT)} for {file.relative_to(ROOT)}"
        for file in own
        if not is_test_of(its_test(file), file) and room(file) not in whole
    }
    assert not missing, "to be written:\n" + "\n".join(sorted(missing))


@pytest.mark.parametrize(
    ("source", "enough"),
    [
        ("", False),
        ("from trtcal.ranges.growth import GROWTH\n", False),
        ("def test_one():\n    assert regrowth\n", False),
        ("from trtcal.ranges import growth\ndef test_one():\n    assert growth\n", True),
        ("from trtcal.ranges.growth import GROWTH\ndef test_one():\n    assert GROWTH\n", True),
        ("def test_one():\n    run('assert trtcal.growth_rule')\n", True),
    ],
)
def test_a_test_is_one_that_has_a_function_and_its_file(tmp_path: Path, source: str, enough: bool) -> None:
    (tmp_path / "test_growth.py").write_text(source)
    assert is_test_of(tmp_path / "test_growth.py", ROOT / "trtcal" / "ranges" / "growth.py") == enough
    assert not is_test_of(tmp_path / "test_other.py", ROOT / "trtcal" / "ranges" / "growth.py")


def drawn(text: str) -> dict[str, list[str]]:
    """Rooms that docs/design.md draws -> the names in each: ``ranges/   kernels, histogram, ...``."""
    block = re.search(r"^```rooms\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    found: dict[str, list[str]] = {}
    name = ""
    for line in block[1].splitlines():
        head = re.match(r"(\w+)/ +(.*)", line)
        if head:
            name, line = head[1], head[2]
        found.setdefault(name, []).extend(re.findall(r"\w+/?", line))
    return found


def test_the_design_draws_each_file_in_its_room() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    there: dict[str, list[str]] = {}
    for base in (*(ROOT / "trtcal").glob("*/__init__.py"), ROOT / "calibrators" / "__init__.py"):
        files = [path.stem for path in base.parent.glob("*.py") if path.name != "__init__.py"]
        folders = [f"{path.parent.name}/" for path in base.parent.glob("*/__init__.py")]
        if base.parent.name not in ("demo", "cli"):
            there[base.parent.name] = sorted(files + folders)
    assert {name: sorted(names) for name, names in drawn(text).items()} == there


def test_the_reader_of_rooms_sees_every_kind() -> None:
    text = "```rooms\nfiles/    atomic, npy\n          remote\nsweep/  plan, report/\n```\n"
    assert drawn(text) == {"files": ["atomic", "npy", "remote"], "sweep": ["plan", "report/"]}


def test_slow_and_exhaustive_tests_say_why_they_take_long() -> None:
    unsaid = [
        f"{file.relative_to(ROOT)}: {found}"
        for file in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(
            r"pytest\.mark\.(?:slow|exhaustive)\b(?!\(reason=\"\w)", file.read_text(encoding="utf-8")
        )
    ]
    assert not unsaid, f"give each a reason: {unsaid}"


def test_the_reader_of_imports_sees_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import a.b\nfrom c import d, e\nif TYPE_CHECKING:\n    import f\nclass G:\n    import h\n"
        "def i():\n    try:\n        import j\n    except ImportError:\n        pass\n"
    )
    assert [(found.target, found.in_function, found.for_types_only) for found in imports(file)] == [
        ("a.b", False, False),
        ("c.d", False, False),
        ("c.e", False, False),
        ("f", False, True),
        ("h", False, False),
        ("j", True, False),
    ]
