from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import TensorProto, helper

from trtcal.errors import DataError, ModelError, SettingError
from trtcal.model.feeding import asked
from trtcal.model.open import open_model

node = helper.make_node


def detector(**changed: list[int | str]) -> onnx.ModelProto:
    """A voice detector in small: signal, state [2, batch, 3], and the sampling rate."""
    inputs: dict[str, list[int | str]] = {"x": ["batch", 3], "state": [2, "batch", 3], "sr": [], **changed}
    nodes = [
        node("Gather", ["state", "zero"], ["h"], axis=0),
        node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        node("Mul", ["x", "rate"], ["m"]),
        node("Add", ["m", "h"], ["y"]),
    ]
    return make_model(nodes, inputs, ["y"], {"zero": np.array(0)}, dtypes={"sr": TensorProto.INT64})


def test_what_the_user_says_goes_before_what_the_file_tells() -> None:
    model = open_model(detector()).asked(["state=none", "x=1"], ["sr=16000"])
    assert [str(spec) for spec in model.inputs] == ["x: float32 (?, N)", "state: float32 (2, ?, 3)"]
    assert model.feeding.asked == {"state", "x"}
    assert (model.feeding.fixed["sr"].dtype, model.feeding.fixed["sr"].shape) == (np.int64, ())
    plain = open_model(detector())
    assert plain.asked() is plain


def test_an_input_alone_need_not_be_named() -> None:
    model = open_model(make_model([node("Relu", ["x"], ["y"])], {"x": [4, 5]}, ["y"]))
    assert [spec.axis for spec in model.asked(["1"]).inputs] == [1]
    assert [spec.axis for spec in model.asked(["None"]).inputs] == [None]


def test_rows_become_what_the_model_takes() -> None:
    model = open_model(detector()).asked(inputs=["sr=8000"])
    x, state = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    fed = model.fed({"x": x, "state": state})
    assert {name: array.shape for name, array in fed.items()} == {"x": (2, 3), "state": (2, 2, 3), "sr": ()}
    assert fed["x"] is x
    assert np.array_equal(fed["state"][:, 1], state[1])
    assert fed["sr"] == 8000
    assert model.by_rows
    assert model.shapes == {"x": [3], "state": [2, "N", 3], "sr": "= 8000"}
    plain = open_model(make_model([node("Relu", ["x"], ["y"])], {"x": ["N", 5]}, ["y"]))
    assert not plain.by_rows
    assert plain.shapes == {"x": [5]}


def test_a_constant_has_the_type_and_shape_of_its_input(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.ones((2, 1, 3)))
    fixed = asked(detector(sr=["batch", 1]), [], ["sr=16000", f"state={tmp_path / 's.npy'}"]).fixed
    assert fixed["sr"].tolist() == [[16000]]
    assert (fixed["state"].dtype, fixed["state"].shape) == (np.float32, (2, 1, 3))
    boolean = make_model(
        [node("Where", ["b", "x", "x"], ["y"])], {"b": [], "x": [2]}, ["y"], dtypes={"b": TensorProto.BOOL}
    )
    assert asked(boolean, [], ["b=true"]).fixed["b"].dtype == np.bool_


@pytest.mark.parametrize(
    ("axes", "inputs", "message"),
    [
        (["state"], [], r"--batch-axis state: expected NAME=VALUE; the model's inputs are x, state, sr"),
        (["z=1"], [], r"no input 'z'; it has x, state, sr"),
        (
            ["state=3"],
            [],
            r"state=3: state has the axes \(2, batch, 3\); give the number of the one .* from 0 to 2",
        ),
        (["state=-1"], [], r"give the number"),
        (["state=last"], [], r"give the number"),
        (["state=1", "state=0"], [], r"state is given twice"),
        ([], ["sr=fast"], r"--input sr=fast: expected a number, true, false or a file that ends in \.npy"),
        ([], ["sr="], r"expected NAME=VALUE"),
        ([], ["sr"], r"expected NAME=VALUE"),
        ([], ["rate=1"], r"no input 'rate'"),
        (["sr=none"], ["sr=1"], r"--batch-axis sr: what --input fixes is the same for all samples"),
    ],
)
def test_options_that_fit_no_input_are_refused(axes: list[str], inputs: list[str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        open_model(detector()).asked(axes, inputs)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sr=1.5", r"1\.5 is no int64"),
        ("sr=1e30", r"is no int64"),
        ("x=nan", r"nan is no float32"),
        ("x=1e39", r"1e\+39 is no float32"),
        ("x=gone.npy", r"--input x=gone\.npy: gone\.npy cannot be read"),
        ("x=flat.npy", r"--input x=flat\.npy: shape \(7,\), the model takes \(batch, 3\)"),
        ("x=text.npy", r"text\.npy: holds <U1, expected numbers"),
        ("x=torn.npy", r"torn\.npy: claims"),
    ],
)
def test_a_constant_that_the_input_cannot_take_is_refused(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.zeros(7))
    np.save("text.npy", np.array(["a"]))
    np.save("torn.npy", np.zeros((1, 3)))
    Path("torn.npy").write_bytes(Path("torn.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match=message):
        open_model(detector()).asked([], [value])


def test_a_model_whose_inputs_are_all_fixed_has_no_samples() -> None:
    model = open_model(make_model([node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"])).asked([], ["x=1"])
    with pytest.raises(ModelError, match=r"every input is fixed \(--input\)"):
        _ = model.inputs


def test_axes_stay_where_they_are_when_the_batch_size_changes() -> None:
    model = open_model(detector(x=[4, 3], state=[2, 4, 3])).asked(["state=1", "x=0"], ["sr=1"])
    for size in (1, None):
        changed = model.with_batch_size(size)
        assert [(spec.axis, spec.shape) for spec in changed.inputs] == [(0, (3,)), (1, (2, 3))]
        assert changed.output_axes == model.output_axes
        assert changed.batch_size == size


def test_another_model_is_fed_as_one_is_as_far_as_it_has_the_inputs() -> None:
    model = open_model(detector()).asked(["state=none"], ["sr=16000"])
    other = open_model(make_model([node("Add", ["x", "state"], ["y"])], {"x": ["batch", 3], "state": [2, 2, 3]}, ["y"]))
    like = other.fed_like(model)
    assert [spec.axis for spec in like.inputs] == [0, None]
    assert not like.feeding.fixed
    assert other.fed_like(open_model(detector())) is other
