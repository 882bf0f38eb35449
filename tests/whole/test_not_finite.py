"""Models that make nan or the largest floats on purpose, through every command that runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import make_model, save
from onnx import TensorProto, helper

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import NonFiniteError
from trtcal.passes.executor import Here

Run = Callable[..., tuple[int, str, str]]

node = helper.make_node
INPUTS: dict[str, list[int | str]] = {"q": ["N", 4, 6], "kt": ["N", 6, 4], "v": ["N", 4, 6]}


def guarded(outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Attention whose rows may be masked as a whole: their softmax is nan, and nan is replaced by 0."""
    return make_model(
        [
            node("MatMul", ["q", "kt"], ["s"]),
            node("Where", ["m", "zero", "ninf"], ["bias"]),
            node("Add", ["s", "bias"], ["sb"]),
            node("Softmax", ["sb"], ["p"], axis=-1),
            node("IsNaN", ["p"], ["nan"]),
            node("Where", ["nan", "zero", "p"], ["p0"]),
            node("MatMul", ["p0", "v"], ["y"]),
            node("Reshape", ["p", "flat"], ["p_flat"]),
            node("ArgMax", ["p"], ["largest"], axis=-1),
        ],
        {**INPUTS, "m": ["N", 4, 4]},
        list(outputs),
        {"zero": np.array(0, np.float32), "ninf": np.array(-np.inf, np.float32), "flat": np.array([0, -1])},
        dtypes={"m": TensorProto.BOOL},
    )


def smallest() -> onnx.ModelProto:
    """Attention that is masked by the smallest float32, as exported transformers are."""
    return make_model(
        [
            node("Cast", ["m"], ["mf"], to=TensorProto.FLOAT),
            node("Sub", ["one", "mf"], ["inv"]),
            node("Mul", ["inv", "fmin"], ["bias"]),
            node("MatMul", ["q", "kt"], ["s"]),
            node("Add", ["s", "bias"], ["sb"]),
            node("Softmax", ["sb"], ["p"], axis=-1),
            node("MatMul", ["p", "v"], ["y"]),
        ],
        {**INPUTS, "m": ["N", 1, 4]},
        ["y"],
        {"one": np.array(1, np.float32), "fmin": np.array(np.finfo(np.float32).min)},
        dtypes={"m": TensorProto.INT64},
    )


def attended(number: int, mask: np.ndarray, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"q": (4, 6), "kt": (6, 4), "v": (4, 6)}
    return {**{name: rng.normal(size=(number, *shape)).astype("f4") for name, shape in shapes.items()}, "m": mask}


def rows_masked(number: int, first: int = 0) -> dict[str, np.ndarray]:
    """Data whose samples from the first on have a row without anything to attend to."""
    mask = np.tril(np.ones((4, 4), bool))[None].repeat(number, 0)
    mask[first:, 3] = False
    return attended(number, mask)


def columns_masked(number: int) -> dict[str, np.ndarray]:
    mask = np.ones((number, 1, 4), np.int64)
    mask[2:, 0, 3] = 0
    return attended(number, mask)


def cut(data: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    number = len(data["m"])
    return [{name: array[i : i + size] for name, array in data.items()} for i in range(0, number, size)]


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("first", [0, 4])
def test_nan_that_the_graph_replaces_costs_its_tensor_the_range_and_is_named(size: int, first: int) -> None:
    found = calibrate(guarded(), cut(rows_masked(6, first), size), "minmax")
    assert found.unusable["p"] == (
        f"holds nan, which later nodes replace, in {6 - first} of 6 samples (first: batch {first // size} row "
        f"{first % size})"
    )
    assert found.unusable["p_flat"].startswith("carries the range of 'p', which holds nan")
    assert set(found.unusable) == {"bias", "sb", "p", "p_flat", "ninf_output"}
    assert list(found.cache.scales) == ["q", "kt", "v", "s", "zero_output", "p0", "y"]
    assert np.isnan(found.stats.tensors["p"].sample_amax).tolist() == [i >= first for i in range(6)]
    assert not found.stats.tensors["p"].sample_peaks[first:].any()
    clean = rows_masked(6, 6)
    assert found.cache.amax("s") == calibrate(guarded(), cut(clean, size), "minmax").cache.amax("s")


@pytest.mark.parametrize("outputs", [("y", "p"), ("y", "p_flat"), ("p_flat",), ("y", "largest")])
def test_nan_that_an_output_holds_or_is_made_from_is_an_error(outputs: tuple[str, ...]) -> None:
    with pytest.raises(NonFiniteError, match=r"^batch 2 row 0: tensor 'p' holds nan, and no tensor before it"):
        calibrate(guarded(outputs), cut(rows_masked(6, 4), 2), "minmax")


def test_where_nan_is_is_no_nan() -> None:
    found = calibrate(guarded(("y", "nan")), cut(rows_masked(4), 2), "minmax")
    assert found.unusable["p"].startswith("holds nan")


def test_nan_in_an_input_is_an_error_whatever_the_graph_does_with_it() -> None:
    model = make_model(
        [node("IsNaN", ["x"], ["nan"]), node("Where", ["nan", "zero", "x"], ["y"])],
        {"x": ["N", 2]},
        ["y"],
        {"zero": np.array(0, np.float32)},
    )
    x = np.array([[1, 2], [np.nan, 1]], np.float32)
    with pytest.raises(NonFiniteError, match=r"row 1.*input 'x': 1 of 2 values are inf or nan"):
        calibrate(model, [{"x": x}], "minmax")


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_batches_change_nothing_of_a_tensor_that_holds_nan(workers: int) -> None:
    whole = calibrate(guarded(), cut(rows_masked(7, 3), 7)).stats
    found = calibrate(guarded(), cut(rows_masked(7, 3), 2), executor=Here(workers)).stats
    assert list(whole.tensors) == list(found.tensors)
    assert whole.tensors["p"] == found.tensors["p"]
    assert whole.tensors["s"].histogram == found.tensors["s"].histogram


@pytest.mark.parametrize(
    ("model", "data"), [(guarded(), rows_masked(6)), (smallest(), columns_masked(8))], ids=["nan", "smallest float"]
)
def test_every_command_runs_and_warns_of_nothing(
    model: onnx.ModelProto, data: dict[str, np.ndarray], tmp_path: Path, run: Run
) -> None:
    save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", **data)
    with_data = ["--data", "d.npz", "--batch-size", 2]
    commands = [
        ["calibrate", "m.onnx", *with_data, "--method", "minmax", "-o", "m.cache", "--stats", "s.npz"],
        ["calibrate", "m.onnx", *with_data, "-o", "e.cache", "--stats", "s.npz"],
        ["qdq", "m.onnx", "--cache", "m.cache", "-o", "q.onnx"],
        ["evaluate", "m.onnx", *with_data, "--against", "m.onnx", "--cache", "m.cache"],
        ["evaluate", "q.onnx", *with_data, "--against", "m.onnx"],
        ["sensitivity", "m.onnx", "--cache", "m.cache", *with_data, "-o", "s.json"],
        ["sweep", "m.onnx", "--data", "d.npz", "-o", "sweep"],
    ]
    for command in commands:  # Python's warnings are errors here
        code, out, err = run(*command)
        assert code == 0, (command, err)
        assert "Warning" not in out + err, command
        assert "nan%" not in out + err, command
