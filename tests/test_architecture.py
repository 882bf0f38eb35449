"""Holds the direction of imports that docs/design.md draws. The tables come first: change them on purpose."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# A file of trtcal/ imports only from rows above its own; a package (demo/) counts as one file.
LAYERS = (
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
)

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


class Import(NamedTuple):
    file: Path
    line: int
    target: str  # dotted: trtcal.cache, PIL.Image
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
    """Path -> the name it has in the tables: trtcal/cache.py -> cache, trtcal/demo/x.py -> demo."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[1] == "__init__" else parts[1]


def row(name: str) -> int:
    return next((number for number, names in enumerate(LAYERS) if name in names), len(LAYERS))


def in_package(package: str) -> list[Import]:
    return [found for file in FILES if file.is_relative_to(ROOT / package) for found in imports(file)]


INNER = [found for found in in_package("trtcal") if unit(found.file) != "trtcal"]


def test_every_file_has_one_place_in_the_layers() -> None:
    placed = [name for names in LAYERS for name in names]
    assert len(placed) == len(set(placed))
    homeless = {unit(file) for file in FILES if file.is_relative_to(ROOT / "trtcal")} - {"trtcal", *placed}
    assert not homeless, f"give each a row in LAYERS: {sorted(homeless)}"


def test_imports_point_down() -> None:
    wrong = []
    for found in INNER:
        package, name, *_ = [*found.target.split("."), ""]
        if package != "trtcal" or name == "__version__" or name == unit(found.file):
            continue
        if row(name) >= row(unit(found.file)):
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


def test_every_file_has_its_test() -> None:
    tests = {name: TESTED_ELSEWHERE.get(name, f"test_{name}.py") for name in map(unit, FILES)}
    missing = sorted(test for test in tests.values() if not (ROOT / "tests" / test).is_file())
    assert not missing, f"to be written: {missing}"


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
