from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import trtcal
from trtcal import errors

PUBLIC = {
    "FORMATS": "trtcal.cache.formats",
    "METHODS": "trtcal.ranges.thresholds",
    "ActivationStats": "trtcal.ranges.stats",
    "Batches": "trtcal.samples.batches",
    "CalibrationCache": "trtcal.cache.cache",
    "Cluster": "trtcal.cluster.ray_cluster",
    "Here": "trtcal.passes.executor",
    "Histogram": "trtcal.ranges.histogram",
    "OrtRunner": "trtcal.model.runner",
    "Provenance": "trtcal.cache.provenance",
    "RayData": "trtcal.samples.raydata",
    "RayExecutor": "trtcal.cluster.executor",
    "SampleOptions": "trtcal.samples.options",
    "SweepPlan": "trtcal.sweep.plan",
    "TrtcalError": "trtcal.errors",
    "agreement": "trtcal.judging.accuracy",
    "calibrate": "trtcal.calibration.calibrate",
    "calibrate_to_file": "trtcal.calibration.file",
    "collect": "trtcal.passes.collect",
    "evaluate": "trtcal.judging.accuracy",
    "extract_scales": "trtcal.qdq.extract",
    "from_stats": "trtcal.calibration.calibrate",
    "insert_qdq": "trtcal.qdq.insert",
    "open_model": "trtcal.model.open",
    "run_sweep": "trtcal.sweep.run",
    "simulate": "trtcal.judging.accuracy",
    "strip_qdq": "trtcal.qdq.extract",
}


def third_party_after(statement: str) -> set[str]:
    """Packages that a fresh interpreter has loaded through the statement, the standard library left out."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        # Cython leaves modules without a spec, which are none of their own.
        "new = [name for name in set(sys.modules) - before if getattr(sys.modules[name], '__spec__', None)]\n"
        "print(*({name.split('.')[0] for name in new} - sys.stdlib_module_names))"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


def test_the_public_names_are_these() -> None:
    assert sorted(trtcal.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize(("name", "home"), PUBLIC.items(), ids=PUBLIC)
def test_a_public_name_is_the_object_of_its_module(name: str, home: str) -> None:
    assert getattr(trtcal, name) is getattr(import_module(home), name)


def test_a_star_import_brings_exactly_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from trtcal import *", namespace)
    assert namespace.keys() - {"__builtins__"} == PUBLIC.keys()


def test_dir_lists_the_public_names_and_the_version() -> None:
    assert {*PUBLIC, "__version__"} <= set(dir(trtcal))


def test_an_unknown_name_is_an_attribute_error_that_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'trtcal' has no attribute 'calibrat'"):
        trtcal.calibrat  # noqa: B018
    assert not hasattr(trtcal, "calibrat")


def test_importing_trtcal_loads_no_other_package() -> None:
    assert third_party_after("import trtcal") == {"trtcal"}


def test_all_public_names_together_load_numpy_and_nothing_heavier() -> None:
    assert third_party_after("from trtcal import *") == {"trtcal", "numpy"}


def test_the_version_is_dotted_numbers_and_the_changelog_has_it() -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", trtcal.__version__)
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    assert f"\n## {trtcal.__version__}" in changelog.read_text(encoding="utf-8")


def test_type_checkers_are_told_that_the_packages_are_typed() -> None:
    for package in ("trtcal", "calibrators"):
        assert (Path(__file__).parents[1] / package / "py.typed").is_file()


def test_the_tree_in_the_docstring_of_errors_is_the_tree_of_classes() -> None:
    def classes(kind: type[Exception], depth: int) -> list[tuple[int, str]]:
        below = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
        return [(depth, kind.__name__), *(line for child in below for line in classes(child, depth + 1))]

    # "    TrtcalError", and below it a branch of four more columns for each level.
    drawn = re.findall(r"^    ((?:[│ ]   |[├└]── )*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    assert [(len(branch) // 4, name) for branch, name in drawn] == classes(errors.TrtcalError, 0)


def imported_names(text: str) -> set[str]:
    """Python in a file or a page -> the dotted names it imports from trtcal and calibrators."""
    found = set()
    for module, names in re.findall(r"^\s*from ((?:trtcal|calibrators)[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        found |= {f"{module}.{name.partition(' as ')[0].strip()}" for name in names.split(",")}
    return found


def test_pages_and_examples_import_public_names_alone() -> None:
    import calibrators

    root = Path(__file__).parents[1]
    public = {f"trtcal.{name}" for name in (*trtcal.__all__, "demo")}
    public |= {f"calibrators.{name}" for name in calibrators.__all__}
    files = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "examples").glob("*.py")]
    found = {file.name: imported_names(file.read_text(encoding="utf-8")) for file in files}
    assert sum(map(len, found.values())) > 10
    assert {name: names - public for name, names in found.items() if names - public} == {}
