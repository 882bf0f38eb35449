"""trtcal qdq, trtcal weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtcal.cli.common import AsJson, Cache, Exclude, Model, OrtLibrary, Output, Placement, print_out
from trtcal.cli.tables import Command
from trtcal.files import terminal

if TYPE_CHECKING:
    from trtcal.qdq.file import QdqFile

_SHOWN = 8  # reasons printed; --json has all


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(cls=Command)(qdq)
    app.command()(weights)


def qdq(
    model: Model,
    cache: Cache,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.onnx", help="The Q/DQ model to write.")],
    placement: Placement = "tensorrt",
    exclude: Exclude = None,
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="How the weights' scales are found: {methods for weights}.")
    ] = "max",
    ort_library: OrtLibrary = None,
    as_json: AsJson = False,
) -> None:
    """Write the ranges of a cache into the model, as Q/DQ pairs: INT8 for TensorRT 10 and 11 and ONNX Runtime."""
    from trtcal.calibration.file import ranges_for
    from trtcal.model.open import open_model
    from trtcal.model.overwriting import ONNX, check_output
    from trtcal.qdq.file import qdq_to_file

    opened = open_model(model, libraries=ort_library or ())
    check_output(output, ONNX, [opened, cache])
    scales = ranges_for(opened, cache)
    result = qdq_to_file(opened, scales, output, placement=placement, exclude=exclude or (), weights=weights)
    if as_json:
        report = {
            "files": [str(file) for file in result.files],
            "opset": result.opset,
            "layers": dict(result.layers),
            "tensors": {name: float(scale) for name, scale in result.quantized.items()},
            "weights": list(result.weights),
            "skipped": dict(result.skipped),
        }
        print_out(json.dumps(report, indent=2))
    else:
        Output()(_summary(result))


def weights(model: Model, ort_library: OrtLibrary = None, as_json: AsJson = False) -> None:
    """Show what INT8 costs each weight tensor, by max|w| and by methods that clip."""
    from trtcal.judging.evaluation import plain
    from trtcal.model.open import open_model
    from trtcal.qdq.weights import WEIGHT_METHODS, weight_clipping_cost

    rows = weight_clipping_cost(open_model(model, libraries=ort_library or ()))
    if as_json:
        report = [
            {
                "tensor": row.tensor,
                "layer": row.layer,
                "shape": list(row.shape),
                "sqnr_db": {name: plain(value) for name, value in row.sqnr_db.items()},
            }
            for row in rows
        ]
        print_out(json.dumps(report, indent=2))
        return
    if not rows:
        print_out("no constant float32 weights of Conv, ConvTranspose, Gemm or MatMul")
        return
    width = max(len("tensor"), *(len(row.tensor) for row in rows))
    shapes = {row.tensor: "x".join(map(str, row.shape)) for row in rows}
    wide = max(len("shape"), *map(len, shapes.values()))
    print_out("SQNR in dB of int8 weights with one scale per output channel; higher is better")
    print_out(" ".join([f"{'tensor':{width}}  {'shape':>{wide}}", *(f"{name:>18}" for name in WEIGHT_METHODS)]))
    for row in rows:
        values = (f"{row.sqnr_db[name]:18.1f}" for name in WEIGHT_METHODS)
        print_out(terminal.line(" ".join([f"{row.tensor:{width}}  {shapes[row.tensor]:>{wide}}", *values])))


def _summary(result: QdqFile) -> str:
    from trtcal.qdq.insert import CONSTANT

    kinds = ", ".join(f"{count} {op_type}" for op_type, count in result.op_types.items())
    lines = [
        f"{' and '.join(map(str, result.files))}: {len(result.layers)} layers in INT8 ({kinds})",
        f"{len(result.quantized)} activations and {len(result.weights)} weight tensors are quantized; "
        f"opset {result.opset}",
    ]
    skipped = [(tensor, reason) for tensor, reason in result.skipped if reason != CONSTANT]
    constants = len(result.skipped) - len(skipped)
    if constants:
        lines.append(
            f"{constants} {'range is of a constant' if constants == 1 else 'ranges are of constants'}, not used"
        )
    if skipped:
        lines.append(f"{len(skipped)} tensors are not, though there is a range for them or INT8 wants one:")
        reasons: dict[str, list[str]] = {}
        for tensor, reason in skipped:
            reasons.setdefault(reason, []).append(tensor)
        for reason, tensors in list(reasons.items())[:_SHOWN]:
            others = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
            lines.append(f"  {tensors[0]}{others}: {reason}")
        more = len(reasons) - _SHOWN
        lines += [f"  ... and {more} more reasons (--json lists all)"] * (more > 0)
    return terminal.lines(lines)
