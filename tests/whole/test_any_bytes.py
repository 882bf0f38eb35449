"""Any bytes are a value or an error of trtcal's, for every reader; the readers are those of ``tests/helpers/fuzz``."""

from __future__ import annotations

import ast
from pathlib import Path
from random import Random

import pytest
from fuzz.harnesses import HARNESSES
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
# ONNX's C++ is fuzzed in a process of its own, by tests/helpers/fuzz: what brings it down must not take tests along.
PURE = [name for name in HARNESSES if name != "model-qdq"]

every = pytest.mark.parametrize("name", PURE)


@pytest.mark.parametrize("name", HARNESSES)
def test_the_valid_files_that_fuzzing_begins_with_are_read(name: str) -> None:
    harness = HARNESSES[name]
    for seed in harness.seeds():
        harness.check(seed)


@every
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_or_forged_file_is_a_value_or_an_error_of_trtcal(name: str, data: st.DataObject) -> None:
    harness = HARNESSES[name]
    seeds = harness.seeds()
    seed = data.draw(st.sampled_from(range(len(seeds))), "seed")
    number = data.draw(st.integers(0, 2**32), "random number")
    harness.check(harness.mutate(seeds[seed], Random(number)))


@every
@settings(max_examples=30)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_value_or_an_error_of_trtcal(name: str, content: bytes) -> None:
    HARNESSES[name].check(content)


@pytest.mark.parametrize("value", ["[" * 985 + "]" * 985, '{"a":' * 1500, "1e999", "1" + "0" * 400, r'"\ud800"', "NaN"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("sidecar", "0.5"), ("trials", "1.0"), ("sensitivity", "12.0"), ("journal", "3.5"), ("snapshots", "0.5")),
        *(("settings", "1"), ("nvdla", "0.5"), ("ort-json", "1.5")),
    ],
)
def test_json_that_python_reads_and_cannot_use_is_an_error_of_trtcal(name: str, number: str, value: str) -> None:
    seeds = [seed for seed in HARNESSES[name].seeds() if number.encode() in seed]
    assert seeds
    for seed in seeds:
        HARNESSES[name].check(seed.replace(number.encode(), value.encode(), 1))


def test_nothing_is_unpickled() -> None:
    """np.load unpickles only if it is told to, and so is told not to; nothing else here can."""
    for file in [*(ROOT / "trtcal").rglob("*.py"), *(ROOT / "calibrators").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}, where
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), where
                assert node.value.value is False, where
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), where
