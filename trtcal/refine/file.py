"""From an ONNX file and samples to a refined ONNX file; an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from trtcal.errors import OutputError
from trtcal.files import checkpoint
from trtcal.files.atomic import write_bytes
from trtcal.files.brief import brief
from trtcal.files.html import TABLE_STYLE, document, table
from trtcal.judging.accuracy import TOP1, Labels, Score
from trtcal.judging.evaluation import plain
from trtcal.judging.metrics import Metric
from trtcal.model.file import check_weights_output, save_model
from trtcal.model.open import Source, open_model
from trtcal.model.overwriting import HTML, ONNX, check_distinct, check_output, only_writer
from trtcal.refine.whole import MEMORY, Progress, Refinement, refine
from trtcal.samples.batches import Batches

MARK = "trtcal.refined"
"""Key of the model's metadata that says what it was refined from."""


@dataclass(frozen=True, eq=False)
class RefinedFile:
    """The files written, the model first, and what was found."""

    files: tuple[Path, ...]
    found: Refinement

    __repr__ = brief

    def to_dict(self) -> dict[str, Any]:
        """Nothing -> plain data for JSON."""
        found = self.found
        return {
            "files": [str(file) for file in self.files],
            "improved": found.improved,
            "chosen": found.chosen,
            "int8_sqnr_db": {
                "before": _score(found.before),
                "after": _score(found.after),
                "change": _score(found.change),
                "activations_alone": _score(found.activations),
            },
            "variants": {name: _score(score) for name, score in found.variants.items()},
            "scores": {
                name: {key: None if score is None else _score(score) for key, score in scored._asdict().items()}
                for name, scored in found.scores.items()
            },
            "samples": dict(found.samples),
            "biases": found.biases,
            "layers": [
                {
                    "layer": row.layer,
                    "weights": row.weights,
                    "sqnr_db_before": plain(row.before),
                    "sqnr_db_after": plain(row.after),
                    "refined": row.refined,
                }
                for row in found.layers
            ],
            "left_alone": dict(found.left),
        }


def refine_to_file(
    model: Source,
    batches: Batches,
    output: str | Path,
    *,
    scales: Mapping[str, np.float32] | None = None,
    method: str = "mse",
    placement: str = "all",
    transposed: bool = False,
    memory: int = MEMORY,
    labels: Labels | None = None,
    metrics: Mapping[str, Metric] = TOP1,
    page: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    announce: Callable[[str], None] = lambda line: None,
) -> RefinedFile:
    """Float ONNX file and batches -> refined model at ``output``, by :func:`trtcal.refine.refine`.

    Where nothing helps, the model is written as it was, and ``improved`` is False. ``page`` names an HTML page to write
    with what was done. An interruption leaves ``<output>.partial.npz``, from which the next run with the same model,
    samples and options goes on. OutputError where a file would be lost, and what refine() raises.
    """
    opened, output = open_model(model), Path(output)
    check_output(output, ONNX, [opened])
    if opened.has_external_data:
        check_weights_output(output, [opened])
    partial = partial_path(output)
    if page is not None:
        check_output(page, HTML, [opened])
        check_distinct([("the refined model", output), ("the page", page), ("the checkpoint", partial)])
    parts = {
        "model": opened.sha256,
        "samples": batches.key(),
        "order": [batches.order, batches.seed, batches.batch_size],
        "shapes": [str(spec) for spec in opened.inputs],
        "transposed": transposed,
        **({"fed": opened.shapes} if opened.by_rows else {}),
        **opened.library_versions,
    }
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    with only_writer(output):
        kept = checkpoint.load(partial, key, lambda data: _unpacked(partial, data)) or {}
        if kept:
            announce(f"{partial}: going on after the weights of {len(kept)} layers")
        found = refine(
            opened,
            batches,
            scales=scales,
            method=method,
            placement=placement,
            transposed=transposed,
            memory=memory,
            labels=labels,
            metrics=metrics,
            kept=kept,
            keep=lambda rows: checkpoint.save(partial, _packed(key, rows)),
            progress=progress,
        )
        said = {"from_sha256": opened.sha256, "chosen": found.chosen, "version": _version()}
        for entry in [entry for entry in found.model.metadata_props if entry.key == MARK]:
            found.model.metadata_props.remove(entry)
        found.model.metadata_props.add(key=MARK, value=json.dumps(said))
        source = opened.path or opened.proto
        external, libraries = opened.has_external_data, opened.libraries
        files = save_model(found.model, output, external=external, source=source, libraries=libraries)
        made = RefinedFile(files, found)
        if page is not None:
            write_bytes(page, to_page(made, opened.short_name).encode(errors="backslashreplace"))
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return made


def partial_path(output: str | Path) -> Path:
    """Where an interrupted run leaves what it has: ``refined.onnx`` -> ``refined.onnx.partial.npz``."""
    output = Path(output)
    return output.with_name(f"{output.name}.partial.npz")


def to_page(made: RefinedFile, model: str) -> str:
    """What was found, and the model's name -> a page that shows it."""
    found = made.found
    variants = [
        (name, f"{score.value:+.2f}", f"{score.low:+.2f} to {score.high:+.2f}")
        for name, score in found.variants.items()
    ]
    layers = [
        (row.layer, f"{row.before:.1f}", f"{row.after:.1f}", "refined" if row.refined else "as it was")
        for row in found.layers
    ]
    body = (
        "".join(f"<p>{escape(line)}</p>\n" for line in (headline(found), reach(found), *scored(found)))
        + "<h2>What was compared</h2>\n"
        + table(("Variant", "Change of INT8's SQNR, dB", "95% interval"), variants)
        + "<h2>Layers</h2>\n<p>SQNR of the weights as INT8 against FP32's, dB. Compensation trades the error of single "
        "weights for that of the layer's output.</p>\n" + table(("Layer", "Before", "After", "Weights"), layers)
    )
    if found.left:
        body += "<h2>Left alone</h2>\n" + table(("Layer", "Why"), list(found.left.items()))
    return document(f"Refined: {model}", body, TABLE_STYLE)


def headline(found: Refinement) -> str:
    """What was found -> one sentence: how much nearer INT8 is to FP32."""
    samples = found.samples.get("reported on", 0)
    if not found.improved:
        return (
            f"Nothing helped: INT8 stays {found.before.value:.1f} dB from FP32 on {samples} samples, and the model is "
            f"written as it was."
        )
    return (
        f"INT8 comes from {found.before.value:.1f} to {found.after.value:.1f} dB of FP32: {found.change.value:+.1f} dB "
        f"({found.change.low:+.1f} to {found.change.high:+.1f}) on {samples} samples that neither calibrated nor "
        f"chose; by {found.chosen}."
    )


def reach(found: Refinement) -> str:
    """What was found -> one sentence: what refining weights could reach at most."""
    return (
        f"With INT8 activations and FP32 weights it is {found.activations.value:.1f} dB: what lies beyond is lost by "
        f"activations alone, and another method of calibration or layers in float may bring it back."
    )


def scored(found: Refinement) -> list[str]:
    """What was found -> a sentence for each metric: of FP32, of INT8 before and after, and the change."""
    lines = []
    for name, (fp32, before, after, change) in found.scores.items():
        line = f"{name}: {fp32.value:.4g} in FP32, as INT8 {before.value:.4g} before and {after.value:.4g} after"
        if change is not None:
            line += f" ({change.value:+.4g}, 95%: {change.low:+.4g} to {change.high:+.4g})"
        lines.append(f"{line}, on the same samples.")
    return lines


def _score(score: Score) -> dict[str, Any]:
    return {"value": plain(score.value), "low": plain(score.low), "high": plain(score.high)}


def _version() -> str:
    from trtcal import __version__

    return __version__


def _packed(key: str, rows: Mapping[str, np.ndarray]) -> bytes:
    """Refined weights so far -> the checkpoint."""
    buffer = io.BytesIO()
    names = list(rows)
    arrays = {f"rows_{number}": rows[name] for number, name in enumerate(names)}
    np.savez(buffer, head=np.frombuffer(json.dumps({"key": key, "names": names}).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpacked(path: Path, data: bytes) -> tuple[dict[str, np.ndarray], object]:
    """The checkpoint's bytes -> refined weights, and the key they were left under."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            head = json.loads(archive["head"].tobytes())
            return {str(name): archive[f"rows_{n}"] for n, name in enumerate(head["names"])}, head["key"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise OutputError(f"{path}: cannot be used ({error})") from error
