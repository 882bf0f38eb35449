from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from models import conv_model, images, make_model
from sequences import POINTS, STEPS, cloud, clouds, detector, heard, lstm, mean_over, node, steps, with_output

from trtcal.errors import ModelError
from trtcal.model.open import Model, open_model
from trtcal.model.runner import OrtRunner
from trtcal.passes import sharing
from trtcal.passes.sharing import peeked, resolved, with_copies
from trtcal.samples.batches import Batch


def rows(**arrays: np.ndarray) -> list[Batch]:
    """Samples first, in batches of four at most."""
    number = len(next(iter(arrays.values())))
    return [Batch({name: array[i : i + 4] for name, array in arrays.items()}) for i in range(0, number, 4)]


def axes(model: onnx.ModelProto, batches: list[Batch], *said: str) -> dict[str, int | None]:
    found = resolved(open_model(model).asked(said), batches)
    assert found.feeding.resolved
    return {spec.name: spec.axis for spec in found.inputs}


@pytest.mark.parametrize("model", [conv_model(), conv_model(1), conv_model(4)], ids=["dynamic", "1", "4"])
def test_a_model_that_runs_its_samples_apart_is_as_it_was(
    model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_model(model)
    found = resolved(opened, rows(image=images(6)))
    assert found.inputs == opened.inputs
    assert found.feeding.copies == 1
    assert not caplog.records


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sizes", [("d0", "d1"), ("p", "q"), ("T", "B")])
def test_the_batch_of_a_time_major_lstm_is_found(
    direction: str, sizes: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert axes(lstm(*sizes, direction=direction), rows(x=steps())) == {"x": 1}
    if sizes != ("T", "B"):
        assert "axis 1 of x counts samples" in caplog.text
        assert (
            "with axis 0, 'all', 'seen', 'y' would depend on which samples share a run; --batch-axis x=1" in caplog.text
        )


def test_what_the_file_calls_the_batch_is_confirmed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert axes(lstm("T", "batch"), rows(x=steps())) == {"x": 1}
    assert axes(detector(), rows(**heard(), sr=np.full(16, 16000))) == {"x": 0, "state": 1, "sr": None}
    assert not caplog.records


@pytest.mark.parametrize("number", [1, 2])
def test_one_sample_is_enough(number: int) -> None:
    assert axes(lstm("d0", "d1"), rows(x=steps(number))) == {"x": 1}
    assert axes(lstm("d0", "d1"), rows(x=np.repeat(steps(1), 3, axis=0))) == {"x": 1}


@pytest.mark.parametrize("points", [POINTS, "P"])
def test_points_that_share_their_maximum_are_no_samples(points: int | str) -> None:
    single = clouds(2).reshape(-1, 3)
    with pytest.raises(ModelError, match=r"'g', 's', 'y' would depend on which samples .* --batch-axis x=0 .* x=none"):
        resolved(open_model(cloud(points, [points, 5])), rows(x=single))
    assert axes(cloud(points, [points, 5]), rows(x=clouds()), "x=none") == {"x": None}
    assert axes(cloud(POINTS, [1, 5]), rows(x=clouds())) == {"x": None}


def test_a_model_that_mixes_its_samples_is_warned_of_where_the_axis_is_certain(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = steps()[:, 0]
    assert axes(mean_over("batch"), rows(x=x)) == {"x": 0}
    assert "'mean', 'centred', 'y' depend on which samples share a run" in caplog.text
    caplog.clear()
    assert axes(mean_over("N"), rows(x=x), "x=0") == {"x": 0}
    assert "'mean', 'centred', 'y' depend on which samples share a run" in caplog.text


@pytest.mark.parametrize("batch", ["N", "d0", 4])
def test_and_refused_where_nobody_says_so(batch: int | str) -> None:
    with pytest.raises(ModelError, match=r"depend.*--batch-axis x=0"):
        resolved(open_model(mean_over(batch)), rows(x=steps()[:, 0]))


def finds(batch: str) -> onnx.ModelProto:
    """x (batch, 4) -> its positive elements, one after the other."""
    model = make_model(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("Greater", ["m", "zero"], ["p"]),
            node("NonZero", ["p"], ["where"]),
            node("Cast", ["where"], ["places"], to=1),
            node("Relu", ["m"], ["y"]),
        ],
        {"x": [batch, 4]},
        ["places", "y"],
        {"w": np.eye(4, dtype=np.float32), "zero": np.array(0, np.float32)},
    )
    return model


def test_what_has_as_many_rows_as_there_is_to_find_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    x = np.array([[1, -1, 2, -1], [3, 1, -1, 1]], np.float32)
    assert axes(finds("d0"), rows(x=x)) == {"x": 0}
    assert "'places' depends on which samples share a run" in caplog.text


def baked(shape: list[int], *, mixes: bool = False) -> onnx.ModelProto:
    """x (4, 6) through a Reshape that nobody can rewrite."""
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"], ["y"])]
    if mixes:
        nodes[1:] = [node("ReduceMean", ["r"], ["mean"], axes=[0], keepdims=1), node("Sub", ["r", "mean"], ["y"])]
    return make_model(nodes, {"x": [4, 6]}, ["y"], {"s": np.array(shape)})


def test_copies_fill_a_batch_size_that_is_built_in_where_they_change_no_range(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    found = resolved(open_model(baked([8, 3])), rows(x=x))
    assert found.feeding.copies == 4
    assert "its batch size 4 is built into the graph; running each sample as a batch of 4 copies" in caplog.text
    assert with_copies(open_model(baked([8, 3])), {"x": x[:1]}).feeding.copies == 4


def test_copies_that_would_change_a_range_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    message = (
        r"its batch size 4 is built into the graph, and 'mean', 'y' depend on .* copies of one sample cannot stand"
    )
    with pytest.raises(ModelError, match=message):
        resolved(open_model(baked([8, 3], mixes=True)), rows(x=x))
    with pytest.raises(ModelError, match=message):
        with_copies(open_model(baked([8, 3], mixes=True)), {"x": x[:1]})


def test_rows_that_each_get_a_constant_of_their_own_are_no_copies_of_one_another() -> None:
    offset = np.arange(12, dtype=np.float32).reshape(4, 3)
    model = make_model([node("Add", ["x", "offset"], ["y"])], {"x": [4, 3]}, ["y"], {"offset": offset})
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(ModelError, match=r"'y' would depend|cannot stand"):
        resolved(open_model(model), rows(x=x))  # each row of a batch gets an offset of its own


def test_inputs_that_are_one_for_all_samples_stay_so() -> None:
    """The recurrent state has room for one sample, and the input any number of steps: they are no samples."""
    model = lstm("sequence_length", 1)
    assert axes(model, rows(x=steps()[:, :, None])) == {"x": None}
    with pytest.raises(ModelError, match=r"'all', 'seen', 'y' would depend on which samples share a run"):
        resolved(open_model(lstm("d0", 1)), rows(x=steps()[:, 0, None]))


def test_a_model_that_does_not_run_says_so_and_is_let_pass_where_others_run_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = baked([7, 3])
    x = np.ones((4, 6), np.float32)
    with pytest.raises(ModelError, match="ONNX Runtime cannot run it"):
        resolved(open_model(broken), rows(x=x))
    assert resolved(open_model(broken), rows(x=x), must_run=False).feeding.resolved
    assert "whether ranges depend on which samples share a run is not known" in caplog.text
    assert resolved(open_model(broken), rows(x=x), judged=True).feeding.copies == 1


def test_what_is_settled_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolved(open_model(lstm("d0", "d1")), rows(x=steps()))

    def called(*_: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(OrtRunner, "__call__", called)
    assert resolved(found, rows(x=steps())) is found
    assert resolved(open_model(conv_model(1)), rows(image=images(2))).feeding.resolved  # nothing could share a run


def test_an_iterator_loses_no_batch() -> None:
    batches = rows(x=steps())

    def once() -> Iterator[Batch]:
        yield from batches

    model, again = peeked(open_model(lstm("d0", "d1")), once())
    assert [spec.axis for spec in model.inputs] == [1]
    assert all(a is b for a, b in zip(again, batches, strict=True))
    model, again = peeked(open_model(lstm("d0", "d1")), iter([]))
    assert list(again) == []


def test_of_a_large_model_some_tensors_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MOST_BYTES", 1)
    assert axes(conv_model(), rows(image=images(4))) == {"image": 0}
    assert axes(lstm("d0", "d1"), rows(x=steps())) == {"x": 1}  # the last one is among them


@pytest.mark.parametrize("sizes", [("d0", "d1"), (STEPS, 8)])
def test_a_model_that_is_judged_shows_it_by_its_outputs(sizes: tuple[int | str, int | str]) -> None:
    model = open_model(lstm(*sizes))
    if sizes == ("d0", "d1"):
        assert [spec.axis for spec in resolved(model, rows(x=steps()), judged=True).inputs] == [1]
    else:
        with pytest.raises(ModelError, match=r"has batch size 10 built in; use batches of 10 \('y' would be another"):
            resolved(model, rows(x=steps()[:, :8]), judged=True)


def test_a_largest_float_an_inf_and_a_nan_are_compared_as_they_are() -> None:
    guarded = make_model(
        [
            node("Log", ["x"], ["log"]),
            node("IsNaN", ["log"], ["nan"]),
            node("Where", ["nan", "zero", "log"], ["y"]),
            node("Mul", ["x", "large"], ["far"]),
            node("Clip", ["far", "low", "high"], ["z"]),
        ],
        {"x": ["N", 4]},
        ["y", "z"],
        {
            **{"zero": np.array(0, np.float32), "large": np.array(3e38, np.float32)},
            **{"low": np.array(-3.4e38, np.float32), "high": np.array(3.4e38, np.float32)},
        },
    )
    x = np.array([[1, -1, 0, 2], [3, 1, 1, 0.5]], np.float32)
    assert axes(guarded, rows(x=x)) == {"x": 0}


def test_samples_of_several_shapes_are_compared_in_one() -> None:
    model = with_output(
        make_model([node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)], {"x": ["N", "L"]}, ["y"]), ["N", 1]
    )
    batches = [Batch({"x": np.ones((1, length), np.float32) * length}) for length in (3, 5, 4)]
    assert axes(model, batches) == {"x": 0}


@pytest.mark.parametrize("batch", [1, 3])
def test_an_axis_that_no_sample_fits_is_not_the_one(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of a time-major LSTM whose sizes are all fixed, the steps were taken for the batch, and it could not run."""
    assert axes(lstm(10, batch), rows(x=steps(6))) == {"x": 1}
    assert "axis 1 of x counts samples" in caplog.text
    assert "by what the file says, no sample would fit; --batch-axis x=1 says so" in caplog.text


@pytest.mark.parametrize("batch", [1, 3])
def test_states_of_a_fixed_batch_are_found_by_the_shape_of_the_samples(
    batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in the file says which axis of (2, 1, 4) counts samples; the run ended with a wrong rank."""
    found = resolved(open_model(detector(batch)).asked([], ["sr=16000"]), rows(**heard(6)))
    assert {spec.name: spec.axis for spec in found.inputs} == {"x": 0, "state": 1}
    axes = {1: "axis 1 of state counts samples", 3: "axis 0 of x, axis 1 of state count samples"}[batch]
    option = {1: "--batch-axis state=1 says so", 3: "--batch-axis x=0 --batch-axis state=1 say so"}[batch]
    why = "as a run of some of them shows: by what the file says, no sample would fit"
    assert f"{axes}, {why}; {option}" in caplog.text


@pytest.mark.parametrize("width", [sharing.MOST_TOGETHER, sharing.MOST_TOGETHER + 1])
def test_a_long_axis_of_a_fixed_size_is_not_tried(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 2048 bytes, 2048 samples were run with each other, and took all memory."""
    tried = []

    class Recording(sharing._Settling):
        def _verdict(self, model: Model) -> sharing._Verdict:
            tried.append(model.inputs[0].axis)
            return super()._verdict(model)

    monkeypatch.setattr(sharing, "_Settling", Recording)
    nodes = [node("ReduceMax", ["x"], ["largest"], axes=[0], keepdims=1), node("Sub", ["x", "largest"], ["y"])]
    model = make_model(nodes, {"x": ["unk__1", width]}, ["y"])
    samples = rows(x=np.random.default_rng(0).normal(size=(2, width)).astype(np.float32))
    if width <= sharing.MOST_TOGETHER:
        assert axes(model, samples) == {"x": 1}
        assert tried == [0, 1]
    else:
        with pytest.raises(ModelError, match="would depend on which samples share a run"):
            axes(model, samples)
        assert tried == [0]
