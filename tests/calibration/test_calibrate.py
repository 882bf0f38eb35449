from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import oracle
import pytest
from models import batched, conv_model, images, make_model, save
from onnx import TensorProto, helper

from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.errors import ModelError
from trtcal.model.open import open_model
from trtcal.model.runner import OrtRunner
from trtcal.ranges.stats import ActivationStats, merge
from trtcal.ranges.thresholds import METHODS

node = helper.make_node


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


def every_tensor(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of conv_model, by running a model that shows them."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("conv", "relu", "sum"))
    rows = [OrtRunner(model)({"image": x[i : i + 1]}) for i in range(len(x))]
    return {"image": x, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]}}


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_entropy_is_tensorrts_for_this_batch_size_and_order(model: Path, batch_size: int) -> None:
    x = images(12)
    for data in (x, x[::-1]):
        scales = calibrate(model, batched(data, batch_size)).cache.scales
        for name, values in every_tensor(model, data).items():
            reference = oracle.Hist()
            for i in range(0, 12, batch_size):
                reference.update(values[i : i + batch_size])
            expected = oracle.scale_from_bin(oracle.entropy_bin(reference.h), reference.R)
            assert oracle.hexf(scales[name]) == oracle.hexf(expected)


def test_batch_size_and_order_change_tensorrts_entropy_and_nothing_else(model: Path) -> None:
    x = images(12)
    settings = [(1, x), (4, x), (4, x[::-1])]

    def scales(method: str, growth: str = "double") -> list[dict[str, np.float32]]:
        return [dict(calibrate(model, batched(d, n), method, growth=growth).cache.scales) for n, d in settings]

    one, two, three = scales("entropy")
    assert one != two
    assert two != three
    for method, growth in [
        ("minmax", "double"),
        ("percentile", "double"),
        ("mse", "double"),
        ("entropy", "power-of-two"),
    ]:
        one, two, three = scales(method, growth)
        assert one == two == three


def test_minmax_is_the_largest_magnitude(model: Path) -> None:
    x = images(6)
    calibration = calibrate(model, batched(x, 4), "minmax")
    assert calibration.cache.algorithm == "MinMaxCalibration"
    for name, values in every_tensor(model, x).items():
        assert calibration.cache.scales[name] == np.float32(np.abs(values).max()) / np.float32(127)


def test_the_cache_lists_carried_scales_and_constants_in_graph_order(model: Path) -> None:
    cache = calibrate(model, batched(images(4), 2)).cache
    assert list(cache.scales) == [
        "image", "conv", "relu", "pool", "offset_output", "sum", "flat", "gw_output", "logits",
    ]  # fmt: skip
    assert cache.scales["pool"] == cache.scales["relu"]
    assert cache.scales["flat"] == cache.scales["sum"]
    assert cache.header == "TRT-8601-EntropyCalibration2"


@pytest.mark.parametrize("method", [*METHODS, "percentile:99"])
def test_every_method_comes_from_the_statistics_of_one_pass(model: Path, method: str) -> None:
    batches = batched(images(8), 4)
    stats = ActivationStats.from_bytes(calibrate(model, batches).stats.to_bytes())
    assert from_stats(open_model(model), stats, method).cache == calibrate(model, batches, method).cache


def test_merged_statistics_serve_every_method(model: Path) -> None:
    x = images(8)
    parts = [calibrate(model, batched(half, 4)).stats for half in (x[:4], x[4:])]
    merged, whole = merge(parts), calibrate(model, batched(x, 4)).stats
    graph = open_model(model)
    for method in ("minmax", "percentile", "mse"):
        assert from_stats(graph, merged, method).cache == from_stats(graph, whole, method).cache
    invariant = calibrate(model, batched(x, 4), growth="power-of-two").cache
    assert from_stats(graph, merged, "entropy").cache == invariant


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_batch_size_in_the_file_changes_nothing(model: Path, tmp_path: Path, fixed: int) -> None:
    static = save(conv_model(batch=fixed), tmp_path / "static.onnx")
    for batch_size in (1, 4, 3):
        batches = batched(images(7), batch_size)
        assert calibrate(static, batches).cache == calibrate(model, batches).cache


def test_a_batch_size_built_into_the_graph_is_filled_with_copies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    baked = make_model(
        [node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"], ["y"])],
        {"x": [4, 6]},
        ["y"],
        {"s": np.array([8, 3])},
    )
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    path = save(baked, tmp_path / "baked.onnx")
    one, two = (calibrate(path, batched(x, 3, "x"), workers=n).cache for n in (1, 2))
    assert one == two
    relu = save(make_model([node("Relu", ["x"], ["y"])], {"x": ["N", 6]}, ["y"]), tmp_path / "free.onnx")
    assert one.scales["y"] == calibrate(relu, batched(x, 3, "x")).cache.scales["y"]
    assert "its batch size 4 is built into the graph" in caplog.text


def test_a_graph_that_runs_with_no_batch_size_is_named(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Relu", ["r"], ["y"])]
    broken = make_model(nodes, {"x": [4, 6]}, ["y"], {"s": np.array([7, 3])})
    with pytest.raises(ModelError, match=r"broken\.onnx: ONNX Runtime cannot"):
        calibrate(save(broken, tmp_path / "broken.onnx"), [{"x": np.ones((4, 6), np.float32)}])


def test_tensors_of_the_models_own_functions_are_calibrated(tmp_path: Path) -> None:
    model = make_model([helper.make_node("Twice", ["x"], ["y"], domain="own")], {"x": ["N", 3]}, ["y"])
    body = [node("Add", ["a", "a"], ["inner"]), node("Relu", ["inner"], ["b"])]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 13)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    cache = calibrate(save(model, tmp_path / "f.onnx"), [{"x": -np.ones((2, 3), np.float32)}], "minmax").cache
    assert len(cache.scales) == 3
    assert sorted(map(float, cache.scales.values())) == pytest.approx([0, 1 / 127, 2 / 127])


def test_batches_may_be_tensors_pairs_or_an_iterator(model: Path) -> None:
    expected = calibrate(model, batched(images(6), 2)).cache
    arrays = [batch["image"] for batch in batched(images(6), 2)]
    assert calibrate(model, arrays).cache == expected
    assert calibrate(model, ((array.astype(np.float64), [0, 1]) for array in arrays)).cache == expected
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(images(6))), batch_size=2)
    assert calibrate(model, loader).cache == expected


def test_weights_in_external_files_are_read(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(conv_model(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
    batches = batched(images(4), 2)
    assert calibrate(folder / "m.onnx", batches).cache == calibrate(model, batches).cache


def test_integer_and_boolean_inputs_are_fed_and_get_no_range(tmp_path: Path) -> None:
    model = make_model(
        [
            node("Gather", ["table", "ids"], ["embedded"]),
            node("Where", ["keep", "embedded", "other"], ["kept"]),
            node("ReduceSum", ["kept", "axes"], ["y"]),
        ],
        {"ids": ["N", 4], "keep": ["N", 4, 3], "other": ["N", 4, 3]},
        ["y"],
        {"table": np.arange(15, dtype=np.float32).reshape(5, 3), "axes": np.array([1])},
        dtypes={"ids": TensorProto.INT64, "keep": TensorProto.BOOL},
    )
    rng = np.random.default_rng(0)
    batch = {
        "ids": rng.integers(0, 5, size=(6, 4)),
        "keep": rng.random((6, 4, 3)) < 0.5,
        "other": rng.normal(size=(6, 4, 3)).astype(np.float32),
    }
    cache = calibrate(save(model, tmp_path / "m.onnx"), [batch], "minmax").cache
    assert list(cache.scales) == ["other", "table_output", "embedded", "kept", "y"]
    assert cache.amax("other") == pytest.approx(np.abs(batch["other"]).max())


def test_a_mask_of_inf_has_no_range_and_says_so_with_all_that_carry_it(tmp_path: Path) -> None:
    model = make_model(
        [node("Add", ["x", "mask"], ["m"]), node("Identity", ["m"], ["i"]), node("Softmax", ["i"], ["y"])],
        {"x": ["N", 2]},
        ["y"],
        {"mask": np.array([0, -np.inf], np.float32)},
    )
    calibration = calibrate(save(model, tmp_path / "m.onnx"), [{"x": np.ones((3, 2), np.float32)}])
    assert list(calibration.cache.scales) == ["x", "y"]
    assert set(calibration.unusable) == {"mask_output", "m", "i"}
    assert calibration.hidden == 0
    assert "in 3 of 3 samples (first: batch 0 row 0)" in calibration.unusable["m"]
    assert "carries the range of 'm'" in calibration.unusable["i"]


def test_a_reshape_behind_a_pool_has_the_range_of_its_own_values(tmp_path: Path) -> None:
    model = make_model(
        [node("AveragePool", ["x"], ["p"], kernel_shape=[1, 2]), node("Flatten", ["p"], ["y"])],
        {"x": ["N", 1, 1, 2]},
        ["y"],
    )
    cache = calibrate(save(model, tmp_path / "m.onnx"), [{"x": np.array([[[[3, 1]]]], np.float32)}], "minmax").cache
    assert {name: cache.amax(name) for name in cache.scales} == {"x": 3, "p": 3, "y": 2}


def test_a_threshold_that_clips_much_is_reported(tmp_path: Path) -> None:
    """A spike that shares a level with a neighbour is dear to TensorRT's search: it would rather clip it."""
    model = make_model([node("Identity", ["x"], ["y"])], {"x": ["N", 1000]}, ["y"])
    x = (np.random.default_rng(0).choice([99, 100, 254, 255], (4, 1000), p=[0.01, 0.2, 0.01, 0.78]) / 255).astype("f4")
    path = save(model, tmp_path / "m.onnx")
    assert calibrate(path, batched(x, 4, "x")).clipped["x"] > 0.5
    assert calibrate(path, batched(x, 4, "x"), "minmax").clipped == {}


def test_half_precision_models_are_calibrated(tmp_path: Path) -> None:
    model = make_model([node("Relu", ["x"], ["y"])], {"x": ["N", 3]}, ["y"], dtypes={"x": TensorProto.FLOAT16})
    x = np.array([[-2, 1, 0.5]], np.float16)
    cache = calibrate(save(model, tmp_path / "m.onnx"), [{"x": x}], "minmax").cache
    assert (cache.amax("x"), cache.amax("y")) == (2, 1)


def test_the_header_is_the_one_asked_for(model: Path) -> None:
    batches = batched(images(2), 2)
    calibration = calibrate(model, batches, "minmax", trt_version="10.3.0", algorithm="EntropyCalibration2")
    assert calibration.cache.header == "TRT-100300-EntropyCalibration2"


def test_wrong_arguments_are_refused_before_the_pass(model: Path) -> None:
    def never() -> object:
        raise AssertionError("the data was read")
        yield

    for arguments, message in [
        ({"method": "kl"}, "unknown method"),
        ({"growth": "x"}, "unknown growth rule"),
    ]:
        with pytest.raises(ValueError, match=message):
            calibrate(model, never(), **arguments)  # type: ignore[arg-type]


def test_the_number_of_workers_changes_no_byte(model: Path) -> None:
    batches = batched(images(9), 4)
    one, four = (calibrate(model, batches, workers=n) for n in (1, 4))
    assert one.cache.format() == four.cache.format()
    assert one.stats.to_bytes() == four.stats.to_bytes()


def test_without_numba_the_bytes_are_the_same(model: Path, tmp_path: Path) -> None:
    """In a process of its own, where numba cannot be imported."""
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np; from trtcal import calibrate\n"
        "x = np.load(sys.argv[2])\n"
        "cache = calibrate(sys.argv[1], [{'image': x[:4]}, {'image': x[4:]}], workers=1).cache\n"
        "open(sys.argv[3], 'wb').write(cache.format())\n"
    )
    x = images(8)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "c.cache"
    subprocess.run([sys.executable, "-c", script, model, tmp_path / "x.npy", out], check=True, capture_output=True)
    assert out.read_bytes() == calibrate(model, batched(x, 4), workers=1).cache.format()
