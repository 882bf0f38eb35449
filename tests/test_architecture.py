"""Holds the direction of imports that docs/design.md draws. The tables come first: change them on purpose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# A file imports only from rows above its own; a package (demo/) counts as one file. calibrators/__init__.py shows what
# lies above it and has a row; trtcal/__init__.py is above and below everything, and has none.
LAYERS = {
    "trtcal": (
        ("errors", "spec", "kernels", "terminal"),
        (
            "atomic",
            "histogram",
            "graph",
            "preprocess",
            "conform",
            "folders",
            "npy",
            "script",
            "labels",
            "spelling",
            "cluster",
            "remote",
        ),
        ("outputs", "zoofile"),
        ("growth", "provenance", "topology", "metrics", "modelfile"),
        ("cache", "pair", "thresholds", "runners", "data", "placement"),
        ("stats", "arrays", "images", "streams", "raydata", "feeding", "weights"),
        ("sources", "collector", "emulation", "measuring", "qdq"),
        ("calibration", "accuracy", "formats", "cache_doctor", "exact", "parts"),
        ("evaluation", "damage", "shards"),
        ("distributed",),
        ("cachefile", "qdqfile", "sensitivity", "sweep", "contact_sheet", "doctor"),
        ("recommend", "drift", "judge", "cpujudge"),
        ("sweepfile",),
        ("journal",),
        ("report", "zoopage", "demo", "cache_plot"),
        ("sweeprun",),
        ("tracking", "zoo"),
        ("cli",),
        ("__main__",),
    ),
    "calibrators": (
        ("versions", "nvrtc", "intake", "kept", "store", "inspection", "presets", "overwriting"),
        ("memory", "shapes", "coverage", "trtlog"),
        ("buffers",),
        ("device_kernels", "execution", "feed", "visible"),
        ("gpu_stats", "origin", "runner"),
        ("calibrator",),
        ("cached", "entropy", "legacy", "minmax"),
        ("engine", "percentile"),
        ("judging", "options", "calibrators"),
        ("command",),
    ),
}

# Packages that are slow to import or not always there -> the files of trtcal/ that may import them.
OWNERS: dict[str, set[str]] = {
    "PIL": {"preprocess", "contact_sheet"},
    "mlflow": {"tracking"},
    "numba": {"kernels"},
    "onnx": {"graph", "modelfile", "topology", "runners", "qdq", "formats"},
    "onnxruntime": {"runners"},
    "plotly": {"cache_plot"},
    "ray": {"cluster"},
    "fsspec": {"remote"},
    "yaml": {"zoofile"},
    "rich": {"cli"},
    "torch": set(),
    "typer": {"cli"},
}

# What only calibrators/ may import. A command that needs a GPU imports calibrators when it runs.
FRONTIER = {"calibrators", "cuda", "cupy", "pycuda", "tensorrt"}
MAY_IMPORT_CALIBRATORS_IN_A_FUNCTION = {"cli"}

# trtcal/__init__.py and errors.py are the public surface, and are tested as such.
TESTED_ELSEWHERE = {
    "__main__": "test_cli.py",
    "trtcal": "test_public_api.py",
    "errors": "test_public_api.py",
    "spec": "test_feeding.py",
    "cluster": "test_distributed.py",
    "shards": "test_distributed.py",
    "zoopage": "test_zoo.py",
}

# Files that their tests reach through others, and the name by which they do.
REACHED_BY = {
    "__main__": '"-m", "trtcal"',
    "calibrator": "MinMaxCalibrator",
    "shards": "trtcal.cluster.distributed",
    "visible": "calibrators.gpu_stats",
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

    return list(visit(ast.parse(file.read_text(encoding="utf-8")), False, False))


def unit(file: Path) -> str:
    """Path -> the name it has in the tables: trtcal/cache/cache.py -> cache, trtcal/demo/x.py -> demo."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[1] == "__init__" else parts[1]


def row(package: str, name: str) -> int:
    layers = LAYERS[package]
    return next((number for number, names in enumerate(layers) if name in names), len(layers))


def in_package(package: str) -> list[Import]:
    return [found for file in FILES if file.is_relative_to(ROOT / package) for found in imports(file)]


def units(package: str) -> set[str]:
    return {unit(file) for file in FILES if file.is_relative_to(ROOT / package)}


@pytest.mark.parametrize("package", LAYERS)
def test_every_file_has_one_place_in_the_layers(package: str) -> None:
    placed = [name for names in LAYERS[package] for name in names]
    assert len(placed) == len(set(placed))
    assert {*placed, package} == {*units(package), package}, "each file has a row in LAYERS, and each row its files"


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    wrong = []
    for found in in_package(package):
        root, name, *_ = [*found.target.split("."), ""]
        if root != package or name == "__version__" or name == unit(found.file):
            continue
        # What is no file is a class or function that the package itself shows.
        if row(package, name if name in units(package) else package) >= row(package, unit(found.file)):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_a_heavy_package_is_imported_by_its_owner_alone() -> None:
    wrong = [
        str(found)
        for found in in_package("trtcal")
        if not found.for_types_only
        and unit(found.file) not in OWNERS.get(found.target.split(".")[0], {unit(found.file)})
    ]
    assert not wrong, "\n".join(wrong)


def test_trtcal_knows_no_tensorrt_and_no_cuda() -> None:
    wrong = [
        str(found)
        for found in in_package("trtcal")
        if (package := found.target.split(".")[0]) in FRONTIER
        and not (
            package == "calibrators" and found.in_function and unit(found.file) in MAY_IMPORT_CALIBRATORS_IN_A_FUNCTION
        )
    ]
    assert not wrong, "\n".join(wrong)


def is_test_of(test: Path, file: Path) -> bool:
    """Has a file's test a test function, and does it import the file or name something public that is defined there?

    Names are looked for as words, since programs for processes of their own are text in a test.
    """
    if not test.is_file():
        return False
    source = test.read_text(encoding="utf-8")
    package = file.relative_to(ROOT).parts[0]
    module = package if unit(file) == package else f"{package}.{unit(file)}"
    names = {module, REACHED_BY.get(unit(file), module)}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            names.add(node.name)
    words = "|".join(map(re.escape, names))
    named = re.search(rf"(?<!\w)({words})(?!\w)", source) or any(found.target == module for found in imports(test))
    return bool(named and re.search(r"^def test_", source, re.MULTILINE))


def test_every_file_has_its_test() -> None:
    tests = {file: ROOT / "tests" / TESTED_ELSEWHERE.get(unit(file), f"test_{unit(file)}.py") for file in FILES}
    missing = {
        f"{test.name} for {file.relative_to(ROOT)}" for file, test in tests.items() if not is_test_of(test, file)
    }
    assert not missing, f"to be written: {sorted(missing)}"


@pytest.mark.parametrize(
    ("source", "enough"),
    [
        ("", False),
        ("from trtcal.ranges.growth import GROWTH\n", False),
        ("def test_one():\n    assert regrowth\n", False),
        ("from trtcal import growth\ndef test_one():\n    assert growth\n", True),
        ("from trtcal.ranges.growth import GROWTH\ndef test_one():\n    assert GROWTH\n", True),
        ("def test_one():\n    run('assert trtcal.growth_rule')\n", True),
    ],
)
def test_a_test_is_one_that_has_a_function_and_its_file(tmp_path: Path, source: str, enough: bool) -> None:
    (tmp_path / "test_growth.py").write_text(source)
    assert is_test_of(tmp_path / "test_growth.py", ROOT / "trtcal" / "growth.py") == enough
    assert not is_test_of(tmp_path / "test_other.py", ROOT / "trtcal" / "growth.py")


def rooms(package: str, text: str) -> list[str]:
    """Files and folders that docs/design.md names in its rooms of a package."""
    room = re.search(rf"^{package}/ .*\n((?: +.*\n)+)", text, re.MULTILINE)
    assert room is not None
    return re.findall(r"\b\w+\.(?:py|cu)\b|(?<!\S)\w+/(?!\S)", room[1])


@pytest.mark.parametrize("package", LAYERS)
def test_each_file_has_one_room_in_the_design(package: str) -> None:
    there = {path.name for pattern in ("*.py", "*.cu") for path in (ROOT / package).glob(pattern)} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
    named = rooms(package, (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(there)


def test_the_reader_of_rooms_sees_every_kind() -> None:
    text = "trtcal/   knows\n  a.py b.cu c/   Q/DQ, d.py e/f\nscripts/ g.py\n"
    assert rooms("trtcal", text) == ["a.py", "b.cu", "c/", "d.py"]


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
