"""Layers that shall not be INT8, in the spelling that each builder takes."""

from __future__ import annotations

from collections.abc import Iterable
from shlex import quote
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto


def tensorrt_name(node: NodeProto) -> str:
    """ONNX node -> the name that TensorRT's parser gives its layer, from 8.6 on.

    Where several nodes have one name, TensorRT numbers the later ones. Source: ``getNodeName`` of onnx-tensorrt.
    """
    return node.name or f"node_of_{node.output[0]}"


def for_exclude(patterns: Iterable[str]) -> str:
    """Patterns -> the options of ``trtcal qdq``, ``evaluate`` and ``sensitivity``, quoted for a shell."""
    return " ".join(f"--exclude {quote(pattern)}" for pattern in patterns)


def for_trtexec(names: Iterable[str]) -> str:
    """TensorRT's layer names -> the options of trtexec that keep them in FP16, quoted for a shell.

    trtexec parts the list at commas and drops single quotes, and knows no way to escape either: names that
    hold one are left out, and :func:`beyond_trtexec` tells them.
    """
    names = list(names)
    without = set(beyond_trtexec(names))
    spec = ",".join(f"{name}:fp16" for name in names if name not in without)
    return f"--precisionConstraints=obey {quote(f'--layerPrecisions={spec}')}"


def beyond_trtexec(names: Iterable[str]) -> tuple[str, ...]:
    """TensorRT's layer names -> those that trtexec's ``--layerPrecisions`` cannot say."""
    return tuple(name for name in names if "," in name or "'" in name)


def for_polygraphy(names: Iterable[str]) -> str:
    """TensorRT's layer names -> the options of ``polygraphy run`` and ``convert`` that keep them in FP16, quoted."""
    spec = " ".join(quote(f"{name}:float16") for name in names)
    return f"--precision-constraints obey --layer-precisions {spec}"
