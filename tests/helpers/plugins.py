"""Models with operators that ONNX Runtime does not know, and a library that brings one."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import make_model
from onnx import helper

node = helper.make_node


def detector(
    op: str = "EfficientNMS_TRT",
    domain: str = "TRT",
    *,
    imported: bool = True,
    opset: int = 13,
    size: int = 8,
    batch: int | str = "N",
    whole: bool = True,
) -> onnx.ModelProto:
    """image (N, 3, 8, 8) -> two convolutions -> boxes, scores -> a plugin -> num (int32), dets.

    Where it is not the ``whole`` model, what goes into the plugin are its outputs: the model cut by hand.
    """
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["image", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"], name="relu"),
        node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w2"], ["boxes"], name="head"),
        node("Conv", ["p", "w3"], ["logits"], name="classes"),
        node("Sigmoid", ["logits"], ["scores"], name="sigmoid"),
    ]
    if whole:
        nodes.append(node(op, ["boxes", "scores"], ["num", "dets"], name="nms", domain=domain, score_threshold=0.25))
    model = make_model(
        nodes,
        {"image": [batch, 3, size, size]},
        ["num", "dets"] if whole else ["boxes", "scores"],
        {
            "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "w2": rng.normal(size=(4, 4, 1, 1)).astype(np.float32),
            "w3": rng.normal(size=(5, 4, 1, 1)).astype(np.float32),
        },
        opset=opset,
    )
    if whole:
        for name, kind in (("num", onnx.TensorProto.INT32), ("dets", onnx.TensorProto.FLOAT)):
            value = next(value for value in model.graph.output if value.name == name)
            value.CopyFrom(helper.make_tensor_value_info(name, kind, [batch, 1] if name == "num" else [batch, 100, 4]))
        if imported and domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def twice(domain: str = "test.ops") -> onnx.ModelProto:
    """image (N, 3, 8, 8) -> convolution, `Twice` of the library below, ReLU, convolution -> y."""
    rng = np.random.default_rng(1)
    model = make_model(
        [
            node("Conv", ["image", "w"], ["c"], name="conv"),
            node("Twice", ["c"], ["t"], name="twice", domain=domain),
            node("Relu", ["t"], ["r"], name="relu"),
            node("Conv", ["r", "w2"], ["y"], name="head"),
        ],
        {"image": ["N", 3, 8, 8]},
        ["y"],
        {
            "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
            "w2": rng.normal(size=(4, 4, 1, 1)).astype(np.float32),
        },
    )
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def doubled() -> onnx.ModelProto:
    """The same in ONNX's own operators."""
    model = twice()
    operator = next(each for each in model.graph.node if each.op_type == "Twice")
    operator.CopyFrom(node("Add", ["c", "c"], ["t"], name="twice"))
    del model.opset_import[1:]
    return model


@functools.cache
def library() -> Path:
    """The library of ``test.ops::Twice``, compiled; skips the test where it cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("a library of custom operators needs Linux and a C compiler")
    source = Path(__file__).with_name("ort_ops.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    made = Path(tempfile.mkdtemp(prefix="trtcal-ops-")) / f"libtwice-{digest}.so"
    options = ["-std=c99", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, str(source), "-o", str(made)], check=True)
    return made


def images(number: int = 4, *, size: int = 8, seed: int = 0) -> np.ndarray:
    """Samples (N, 3, 8, 8) for either model."""
    return np.random.default_rng(seed).normal(size=(number, 3, size, size)).astype(np.float32)
