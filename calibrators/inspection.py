"""A deserialized engine -> what became of the network: how many layers compute in which precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

# As the engine inspector spells data types: "Int8 NC/32HW32", "Row major linear FP32", "Half", "FP8".
_PRECISION = re.compile(r"\b(int8|int4|fp8|fp16|half|bf16|fp32|float|int32|int64|bool)\b", re.IGNORECASE)
_SAME = {"half": "fp16", "float": "fp32"}


def layers_per_precision(trt: Any, engine: Any) -> dict[str, int] | None:
    """Engine -> precision of the first output -> number of layers, most first; None where TensorRT does not tell."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    counts: Counter[str] = Counter()
    for layer in layers:
        outputs = layer.get("Outputs") if isinstance(layer, dict) else None  # names alone without DETAILED verbosity
        if not outputs:
            continue
        found = _PRECISION.search(str(outputs[0].get("Format/Datatype", "")))
        precision = found[1].lower() if found else "other"
        counts[_SAME.get(precision, precision)] += 1
    return dict(counts.most_common()) or None
