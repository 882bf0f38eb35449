"""Spellings of one model: whatever is odd about a file is settled at the door, and every command answers alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import conv_model, images, save
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.doctor import check
from trtcal.calibration.calibrate import calibrate, from_stats
from trtcal.calibration.file import calibrate_to_file
from trtcal.judging.accuracy import simulate
from trtcal.judging.evaluation import open_runner
from trtcal.judging.sensitivity import section, sensitivity
from trtcal.model.nodes import replaced
from trtcal.model.open import open_model
from trtcal.qdq.extract import extract_scales, strip_qdq
from trtcal.qdq.file import qdq_to_file
from trtcal.qdq.insert import insert_qdq
from trtcal.qdq.weights import weight_clipping_cost
from trtcal.refine.whole import refine
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep

Run = Callable[..., tuple[int, str, str]]
node = helper.make_node


def permuted(model: ModelProto) -> None:
    replaced(model.graph.node, reversed(list(model.graph.node)))


def named_alike(model: ModelProto) -> None:
    for each in model.graph.node:
        each.name = "layer"


def constants_as_inputs(model: ModelProto) -> None:
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def constants_as_nodes(model: ModelProto) -> None:
    held = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = [node("Constant", [], [tensor.name], value=tensor) for tensor in held]
    replaced(model.graph.node, [*nodes, *model.graph.node])


def constants_twice(model: ModelProto) -> None:
    model.graph.initializer.extend(list(model.graph.initializer))


def constants_behind_identities(model: ModelProto) -> None:
    nodes = []
    for each in model.graph.node:
        for position, name in enumerate(each.input):
            if name in ("w", "gw", "shape"):
                nodes += [node("Identity", [name], [f"{name}_1"]), node("Identity", [f"{name}_1"], [f"{name}_2"])]
                each.input[position] = f"{name}_2"
        nodes.append(each)
    replaced(model.graph.node, nodes)


def weights_computed(model: ModelProto) -> None:
    """As exporters leave them: in float64 and transposed."""
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "gw"):
            turned = numpy_helper.to_array(tensor).T.astype(np.float64)
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(turned), f"{name}_turned"))
            nodes = [
                node("Cast", [f"{name}_turned"], [f"{name}_cast"], to=TensorProto.FLOAT),
                node("Transpose", [f"{name}_cast"], [name]),
            ]
            replaced(model.graph.node, [*nodes, *model.graph.node])


def layers_in_a_function(model: ModelProto) -> None:
    inside = [each for each in model.graph.node if each.output[0] in ("conv", "relu", "pool")]
    after = [each for each in model.graph.node if each not in inside]
    made = helper.make_function("own", "Block", ["image", "w", "b"], ["pool"], inside, model.opset_import)
    call = node("Block", ["image", "w", "b"], ["pool"], "block", domain="own")
    replaced(model.graph.node, [call, *after])
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(made)


SPELLINGS = (
    permuted, named_alike, constants_as_inputs, constants_as_nodes, constants_twice, constants_behind_identities,
    weights_computed, layers_in_a_function,
)  # fmt: skip
RENAMED = {"layers_in_a_function": {"conv__1": "conv", "relu__1": "relu"}}
SAMPLES = images(8)


def spelt(spelling: Callable[[ModelProto], None]) -> ModelProto:
    model = conv_model()
    spelling(model)
    return model


def ranges(model: ModelProto, names: dict[str, str]) -> dict[str, np.float32]:
    """Ranges of what an input flows through; constants have other names where they are spelt otherwise."""
    found = calibrate(model, Batches(ArraySource({"image": SAMPLES}), 4)).cache.scales
    known = ("image", "conv", "relu", "pool", "sum", "flat", "logits")
    return {names.get(name, name): scale for name, scale in found.items() if names.get(name, name) in known}


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.__name__)
def test_the_cache_and_the_int8_model_are_those_of_the_plain_model(spelling: Callable[[ModelProto], None]) -> None:
    model, names = spelt(spelling), RENAMED.get(spelling.__name__, {})
    back = {new: old for old, new in names.items()}
    expected = ranges(conv_model(), {})
    assert ranges(model, names) == expected
    scales = {back.get(name, name): scale for name, scale in expected.items()}
    for placement in ("tensorrt", "all"):
        plain = insert_qdq(conv_model(), expected, placement=placement)
        found = insert_qdq(model, scales, placement=placement)
        assert found.weights == plain.weights
        assert {names.get(name, name): scale for name, scale in found.quantized.items()} == dict(plain.quantized)
        assert len(found.layers) == len(plain.layers)
        x = {"image": SAMPLES}
        with (
            simulate(conv_model(), expected, placement=placement) as one,
            simulate(model, scales, placement=placement) as other,
        ):
            np.testing.assert_array_equal(other(x)["logits"], one(x)["logits"])


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.__name__)
def test_every_command_takes_it(tmp_path: Path, run: Run, spelling: Callable[[ModelProto], None]) -> None:
    np.save(tmp_path / "x.npy", SAMPLES)
    answers = []
    for name, model in (("plain", conv_model()), ("odd", spelt(spelling))):
        file, cache, samples = save(model, tmp_path / f"{name}.onnx"), f"{name}.cache", ("--data", "x.npy")
        assert run("calibrate", file, *samples, "-o", cache)[0] == 0
        code, out, _ = run("cache", "check", cache, "--model", file, "--json")
        counts = json.loads(out)["counts"]
        assert (code, counts["error"], counts["warning"]) == (0, 0, 0)
        assert run("qdq", file, "--cache", cache, "-o", f"{name}-q.onnx")[0] == 0
        onnx.checker.check_model(str(tmp_path / f"{name}-q.onnx"))
        weights = json.loads(run("weights", file, "--json")[1])
        evaluated = json.loads(run("evaluate", file, "--cache", cache, *samples, "--json")[1])["agreement"]
        sensitive = json.loads(run("sensitivity", file, "--cache", cache, *samples, "--layers", 2, "--json")[1])
        answers.append(
            {
                "weights": [{**row, "layer": ""} for row in sorted(weights, key=lambda row: str(row["tensor"]))],
                "evaluate": evaluated,
                "sensitivity": sorted(row["sqnr_db"] for row in sensitive["tensors"]),
            }
        )
    assert answers[0] == answers[1]


def evaluated(source: Any, data: Batches, scales: Mapping[str, np.float32]) -> bytes:
    with open_runner(source, data, scales=scales).runner as runner:
        return runner({"image": SAMPLES})["logits"].tobytes()


def swept(source: Any, data: Batches, folder: Path) -> list[str]:
    run_sweep(
        source, data, folder, SweepPlan(batch_sizes=(1, 4), orders=("given",), methods=("entropy",), accuracy=False)
    )
    return (folder / "trials.csv").read_text().splitlines()


def functions_of_models(scales: Mapping[str, np.float32], folder: Path) -> dict[str, Callable[[Any], Any]]:
    """What takes a model -> a call whose answers can be compared."""
    data = Batches(ArraySource({"image": SAMPLES}), 4)
    cache = CalibrationCache("8601", "EntropyCalibration2", scales)
    folders = (folder / str(number) for number in count())
    return {
        "calibrate": lambda source: calibrate(source, data).cache.format(),
        "from_stats": lambda source: from_stats(source, calibrate(conv_model(), data).stats, "mse").cache.format(),
        "calibrate_to_file": lambda source: calibrate_to_file(source, data, next(folders)).provenance.model_sha256,
        "check": lambda source: check(cache, model=source),
        "insert_qdq": lambda source: insert_qdq(source, scales).model.SerializeToString(),
        "qdq_to_file": lambda source: qdq_to_file(source, scales, next(folders)).files[0].read_bytes(),
        "strip_qdq": lambda source: strip_qdq(source).SerializeToString(),
        "weight_clipping_cost": lambda source: weight_clipping_cost(source),
        "open_runner": lambda source: evaluated(source, data, scales),
        "simulate": lambda source: simulate(source, scales).outputs,
        "sensitivity": lambda source: section(sensitivity(source, scales, data, layers=1)),
        "run_sweep": lambda source: swept(source, data, next(folders)),
        "refine": lambda source: refine(source, data, scales=scales).model.SerializeToString(),
    }


def test_every_function_takes_a_model_in_every_form(tmp_path: Path) -> None:
    path = save(conv_model(), tmp_path / "m.onnx")
    sources = {"text": str(path), "bytes": path.read_bytes(), "proto": onnx.load(path), "model": open_model(path)}
    for name, function in functions_of_models(ranges(conv_model(), {}), tmp_path).items():
        expected = function(path)
        for kind, source in sources.items():
            assert function(source) == expected, f"{name} of {kind}"
    assert sources["proto"] == conv_model()
    quantized = insert_qdq(conv_model(), ranges(conv_model(), {})).model
    found = [extract_scales(source) for source in (quantized, quantized.SerializeToString(), save(quantized, path))]
    assert found[0] == found[1] == found[2] != {}


def test_a_node_is_left_in_float_by_the_name_that_the_file_gives_it() -> None:
    model = conv_model()
    model.graph.node[0].name = model.graph.node[3].name = model.graph.node[5].name = "layer"
    scales = ranges(conv_model(), {})
    assert insert_qdq(model, scales, exclude=["layer"]).layers == ()
    assert insert_qdq(model, scales, exclude=["layer_1"]).layers == ("layer",)  # as sensitivity calls the last of them
    assert open_model(model).originals.nodes == {"layer_0": "layer", "layer_1": "layer"}


def test_layers_that_tensorrt_numbers_are_not_named_for_it(tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "x.npy", SAMPLES)
    found = {}
    for name, spelling in (("alike", named_alike), ("function", layers_in_a_function)):
        save(spelt(spelling), tmp_path / f"{name}.onnx")
        assert run("calibrate", f"{name}.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
        command = ("sensitivity", f"{name}.onnx", "--cache", "c.cache", "--data", "x.npy", "--recover", 1)
        found[name] = json.loads(run(*command, "--json")[1])
        assert "trtexec cannot name" in run(*command)[1]
    for report in found.values():
        options = report["options"]
        assert options["trtexec_cannot_name"]
        assert not any(f"{layer}:fp16" in options["trtexec"] for layer in options["trtexec_cannot_name"])


def test_names_that_qdq_makes_up_hide_nothing_in_a_branch() -> None:
    """The branch has a tensor called as the one that reads int8 in the graph around it."""
    then = [node("Neg", ["image"], ["image_dequantized"]), node("Relu", ["image_dequantized"], ["t"])]
    branches = [
        helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)])
        for nodes in (then, [node("Abs", ["image"], ["image_quantized"])])
    ]
    model = conv_model()
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, [1]))
    model.graph.node.append(node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1]))
    model.graph.output.append(onnx.ValueInfoProto(name="z"))
    scales = ranges(conv_model(), {})
    with simulate(model, scales) as runner:
        found = {flag: runner({"image": SAMPLES, "c": np.array([flag])}) for flag in (True, False)}
    with simulate(conv_model(), scales) as runner:
        np.testing.assert_array_equal(found[True]["logits"], runner({"image": SAMPLES})["logits"])
    np.testing.assert_array_equal(found[True]["z"], np.maximum(-SAMPLES, 0))
    np.testing.assert_array_equal(found[False]["z"], np.abs(SAMPLES))


def test_quantization_inside_a_function_is_found(tmp_path: Path, run: Run) -> None:
    """It was quantized a second time."""
    pair = [node("QuantizeLinear", ["X", "S", "Z"], ["q"]), node("DequantizeLinear", ["q", "S", "Z"], ["Y"])]
    model = conv_model()
    model.graph.node[0].input[0] = "rounded"
    model.graph.node.insert(0, node("FakeQuant", ["image", "s", "zero"], ["rounded"], domain="own"))
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.125), "s"), numpy_helper.from_array(np.int8(0), "zero")]
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(
        helper.make_function("own", "FakeQuant", ["X", "S", "Z"], ["Y"], pair, model.opset_import[:1])
    )
    save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", SAMPLES)
    CalibrationCache("8601", "EntropyCalibration2", {"image": np.float32(1)}).save(tmp_path / "c.cache")
    for command in (("calibrate", "--data", "x.npy"), ("qdq", "--cache", "c.cache", "-o", "q.onnx")):
        code, _, err = run(command[0], "m.onnx", *command[1:])
        assert code == 2
        assert "quantized already" in err or "already quantized" in err
    assert run("cache", "convert", "m.onnx", "-o", "found.cache")[0] == 0
    assert CalibrationCache.load(tmp_path / "found.cache").scales == {"image": np.float32(0.125)}


def test_calibrate_says_that_tensorrt_may_call_tensors_of_functions_otherwise(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    np.save(tmp_path / "x.npy", SAMPLES)
    save(spelt(layers_in_a_function), tmp_path / "f.onnx")
    save(conv_model(), tmp_path / "m.onnx")
    for _ in range(2):  # said of a cache that is up to date as well
        assert run("calibrate", "f.onnx", "--data", "x.npy", "-o", "f.cache")[0] == 0
        assert "f.onnx: 2 tensors are inside functions of the model" in caplog.text
        caplog.clear()
    assert run("calibrate", "m.onnx", "--data", "x.npy", "-o", "m.cache")[0] == 0
    assert not caplog.text


def test_a_function_for_another_opset_stays_in_float_and_is_counted(tmp_path: Path, run: Run) -> None:
    """Softmax meant something else in opset 11."""
    model = conv_model()
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(node("Old", ["scores"], ["logits"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    inside = [node("Softmax", ["X"], ["t"]), node("Neg", ["t"], ["Y"])]
    model.functions.append(helper.make_function("own", "Old", ["X"], ["Y"], inside, [helper.make_opsetid("", 11)]))
    save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", SAMPLES)
    code, _, err = run("calibrate", "m.onnx", "--data", "x.npy", "-o", "c.cache")
    assert code == 0
    assert "2 tensors inside If, Loop, Scan or a function for another opset cannot be seen" in err
    code, out, _ = run("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx", "--json")
    assert code == 0
    assert "made by a function of the model for another opset" in json.loads(out)["skipped"]["logits"]
    assert run("evaluate", "m.onnx", "--cache", "c.cache", "--data", "x.npy")[0] == 0


def test_a_cycle_is_refused_by_every_command(tmp_path: Path, run: Run) -> None:
    """Some went round in it without end."""
    model = conv_model()
    model.graph.node[1].input[0] = "flat"
    save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", SAMPLES)
    save(conv_model(), tmp_path / "plain.onnx")
    assert run("calibrate", "plain.onnx", "--data", "x.npy", "-o", "c.cache")[0] == 0
    for command in (
        ("calibrate", "m.onnx", "--data", "x.npy"),
        ("qdq", "m.onnx", "--cache", "c.cache", "-o", "q.onnx"),
        ("evaluate", "m.onnx", "--cache", "c.cache", "--data", "x.npy"),
        ("sensitivity", "m.onnx", "--cache", "c.cache", "--data", "x.npy"),
        ("weights", "m.onnx"),
        ("contact-sheet", "m.onnx", "--data", "x.npy"),
        ("sweep", "m.onnx", "--data", "x.npy"),
        ("cache", "check", "c.cache", "--model", "m.onnx"),
        ("cache", "convert", "m.onnx", "-o", "d.cache"),
    ):
        code, _, err = run(*command)
        assert code == 2, command
        assert "is on a cycle" in err, command
        assert "m.onnx" in err, command


def test_chains_of_thousands_of_nodes_are_calibrated_and_quantized() -> None:
    """Between a Concat and the layer that reads it: looking through the chain must not recurse."""
    steps = [
        node("Transpose", [f"m{k}"], [f"m{k + 1}"], perm=[0, 1, 3, 2])
        if k % 2
        else node("Identity", [f"m{k}"], [f"m{k + 1}"])
        for k in range(2400)
    ]
    model = conv_model()
    nodes = [node("Concat", ["image"], ["m0"], axis=1), *steps, *model.graph.node]
    nodes[len(steps) + 1].input[0] = "m2400"
    replaced(model.graph.node, nodes)
    found = calibrate(model, Batches(ArraySource({"image": SAMPLES}), 4)).cache.scales
    plain = ranges(conv_model(), {})
    assert {name: found[name] for name in plain} == plain
    assert found["m2400"] == plain["image"]
    assert insert_qdq(model, found).layers[0] == "m0"  # the Concat reads int8, since nothing else is read of it
