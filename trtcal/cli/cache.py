"""trtcal cache."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtcal.cli.common import AsJson, Output, print_out
from trtcal.cli.tables import Command
from trtcal.files import terminal
from trtcal.files.brief import few

if TYPE_CHECKING:
    from trtcal.cache.cache import CalibrationCache
    from trtcal.cache.doctor import Difference, Finding

app = typer.Typer(help="Look into calibration caches and other files of ranges, and mend them.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A calibration cache, or ranges in another format.")]
OutputCache = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="The calibration cache to write.", show_default=False)
]
MANY = 5  # names that stand in one line


@app.command("show")
def cache_show(file: File, as_json: AsJson = False) -> None:
    """Show what a cache holds: header, origin, and the range of every tensor."""
    from trtcal.cache.formats import load
    from trtcal.cache.provenance import read_sidecar

    cache, format = load(file)
    sidecar = read_sidecar(file)
    lines = cache.format().decode().split("\n")[1:-1]
    bits = [line.rsplit(" ", 1)[1] for line in lines]
    if as_json:
        tensors = {
            name: {"scale": float(scale), "amax": _amax(scale), "hex": text}
            for (name, scale), text in zip(cache.scales.items(), bits, strict=True)
        }
        origin = None if sidecar is None else json.loads(sidecar[0].to_json())
        _print_json(
            {
                "format": format,
                "header": cache.header,
                "origin": origin,
                "tensors": tensors,
                "tolerated": list(cache.tolerated),
            }
        )
        return
    width = max(map(len, cache.scales), default=6)
    print_out(_title(cache, format))
    if sidecar is None:
        print_out("origin: unknown (no sidecar vouches for this file)")
    else:
        made = sidecar[0]
        print_out(terminal.line(f"origin: {made.model}, {made.samples_used} samples of {made.data}"))
        print_out(f"        {made.method}, batches of {made.batch_size}, order {made.order}, growth {made.growth}")
    for note in cache.tolerated:
        print_out(terminal.line(f"tolerated: {note}"))
    print_out(f"{'tensor':{width}}  {'amax':>13}  {'scale':>13}  hex")
    for (name, scale), text in zip(cache.scales.items(), bits, strict=True):
        print_out(f"{name:{width}}  {_amax(scale):13.6g}  {scale:13.6g}  {text}")


@app.command("check")
def cache_check(
    file: File,
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL.onnx", help="The floating-point model the cache is for.", show_default=False),
    ] = None,
    trt_version: Annotated[
        str | None,
        typer.Option(metavar="X.Y.Z", help="The TensorRT that will read the cache.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Examine a cache: unusable or suspicious values, names and gaps against its model, the header.

    Exits with 1 if it finds errors, with 0 if it finds nothing worse than warnings.
    """
    from trtcal.cache.doctor import SEVERITIES, check
    from trtcal.cache.formats import load
    from trtcal.cache.provenance import read_sidecar

    cache, format = load(file)
    if trt_version is not None and format != "tensorrt":
        raise ValueError(f"{file}: a file in the format {format} has no header to hold against --trt-version")
    sidecar = None if model is None else read_sidecar(file)
    made_from = None if sidecar is None else sidecar[0]
    findings = check(cache, model=model, trt_version=trt_version, made_from=made_from)
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    if as_json:
        listed = [{"severity": f.severity, "tensor": f.tensor, "message": f.message} for f in findings]
        _print_json({"format": format, "header": cache.header, "counts": counts, "findings": listed})
    else:
        print_out(_title(cache, format))
        for line in _grouped(findings):
            print_out(line)
        print_out(", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items()))
    if counts["error"]:
        raise typer.Exit(1)


@app.command("diff")
def cache_diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A calibration cache, or ranges in another format.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Draw every tensor's range in A and in B.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two caches, tensor by tensor: the largest change first.

    To compare with a fresh calibration, calibrate with --against.
    """
    from trtcal.cache.doctor import diff
    from trtcal.cache.formats import load
    from trtcal.files.atomic import write_bytes
    from trtcal.model.overwriting import HTML, check_output

    if plot is not None:
        check_output(plot, HTML, [first, second])
    rows = diff(load(first)[0], load(second)[0])
    if plot is not None:
        from trtcal.cache.plot import plot_difference

        write_bytes(plot, plot_difference(rows, str(first), str(second)))
        Output()(f"{plot}: {len(rows)} tensors")
    if as_json:
        _print_json(
            [
                {
                    "tensor": row.tensor,
                    "first": None if row.first is None else float(row.first),
                    "second": None if row.second is None else float(row.second),
                    "ratio": row.ratio,
                }
                for row in rows
            ]
        )
    else:
        print_out(terminal.lines(difference_lines(rows, str(first), str(second))))


@app.command("merge")
def cache_merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Caches, or ranges in other formats; the last counts.")
    ],
    output: OutputCache,
) -> None:
    """Put the tensors of several caches into one; where two have the same tensor, the last has it."""
    from trtcal.cache.doctor import merge
    from trtcal.cache.formats import CACHE, load
    from trtcal.model.overwriting import check_output

    check_output(output, CACHE, files)
    caches = [load(file)[0] for file in files]
    merged = merge(caches)
    total = sum(len(cache.scales) for cache in caches)
    _save(merged, output, f"out of {len(caches)} files, {total - len(merged.scales)} of them given more than once")


@app.command("rename")
def cache_rename(
    file: File,
    names: Annotated[
        list[str], typer.Option("--map", metavar="OLD=NEW", help="A tensor and its new name. Repeatable.")
    ],
    output: OutputCache,
) -> None:
    """Give tensors of a cache the names they have in another export of the model.

    FILE, where it is a calibration cache, may itself be written: nothing else in it changes.
    """
    from trtcal.cache.doctor import rename
    from trtcal.cache.formats import CACHE, load
    from trtcal.model.overwriting import check_output

    check_output(output, CACHE)
    mapping = {}
    for pair in names:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise ValueError(f"--map {pair}: expected OLD=NEW")
        mapping[old] = new
    _save(rename(load(file)[0], mapping), output, f"{len(mapping)} of them renamed")


@app.command("retarget")
def cache_retarget(
    file: File,
    output: OutputCache,
    trt_version: Annotated[
        str | None, typer.Option(metavar="X.Y.Z", help="TensorRT version to name.", show_default="as it is")
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Calibrator to name, e.g. EntropyCalibration2.", show_default="as it is"),
    ] = None,
) -> None:
    """Put another TensorRT version or calibrator into the header of a cache; the scales stay.

    FILE, where it is a calibration cache, may itself be written: nothing else in it changes.
    """
    from trtcal.cache.doctor import retarget
    from trtcal.cache.formats import CACHE, load
    from trtcal.model.overwriting import check_output

    check_output(output, CACHE)
    if trt_version is None and algorithm is None:
        raise ValueError("nothing to change: give --trt-version or --algorithm")
    before = load(file)[0]
    _save(retarget(before, trt_version=trt_version, algorithm=algorithm), output, f"were {before.header}")


@app.command("convert", cls=Command)
def cache_convert(
    file: File,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.", show_default=False)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FORMAT", help="Format of the file: {formats}.", show_default="from its content"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="Format to write: {written formats}.",
            show_default="from the name to write",
        ),
    ] = None,
    clean_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FP32.onnx", help="Where FILE is a Q/DQ model: write the model without Q/DQ.", show_default=False
        ),
    ] = None,
) -> None:
    """Turn ranges from one format into another; a Q/DQ model is a source too.

    Ranges go into a model by trtcal qdq.
    """
    from trtcal.cache.formats import FORMATS, RANGES, load, output_format
    from trtcal.cache.formats.qdq_model import save_float_model
    from trtcal.cache.provenance import sidecar_path
    from trtcal.files.atomic import write_bytes
    from trtcal.model.overwriting import ONNX, check_output

    format = output_format(output, target)
    check_output(output, RANGES, [file, sidecar_path(file)])
    if clean_model is not None:
        check_output(clean_model, ONNX, [file])
    cache, read_as = load(file, source)
    if clean_model is not None and read_as != "qdq":
        raise ValueError(f"--clean-model takes Q/DQ out of a model, but {file} is {read_as}")
    if clean_model is not None:
        clean = clean_model.resolve()
        if output.resolve() in (clean, clean.with_name(f"{clean.name}.data")):  # which may be its weights
            raise ValueError(f"{output}: is to become both the ranges and the clean model; choose two names")
    write = FORMATS[format].format
    assert write is not None
    content = write(cache)
    say = Output()
    if clean_model is not None:
        written = save_float_model(file, clean_model)
        say(f"{', '.join(map(str, written))}: the model of {file} without Q/DQ")
    write_bytes(output, content)
    header = f", {cache.header}" if format == "tensorrt" else ""
    header += " by default, since the model names no calibrator" if header and read_as == "qdq" else ""
    say(f"{output}: {len(cache.scales)} tensors from {read_as} to {format}{header}")
    for note in cache.tolerated:
        say(f"{file}: {note}")


def _save(cache: CalibrationCache, output: Path, remark: str) -> None:
    cache.save(output)
    Output()(f"{output}: {len(cache.scales)} tensors, {remark}; {cache.header}")


def _title(cache: CalibrationCache, format: str) -> str:
    return f"{cache.header if format == 'tensorrt' else format}, {len(cache.scales)} tensors"


def _grouped(findings: Iterable[Finding]) -> list[str]:
    """A line per kind of finding, with the first few tensors that it is about."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        tensors = kinds.setdefault((finding.severity, finding.message), [])
        if finding.tensor is not None:
            tensors.append(finding.tensor)
    return [
        f"{severity:7}  {f'{_few(tensors)}: ' if tensors else ''}{message}"
        for (severity, message), tensors in kinds.items()
    ]


def _few(names: list[str]) -> str:
    return few(names, MANY, " (--json lists all)")


def difference_lines(rows: list[Difference], first: str, second: str) -> list[str]:
    """Rows of a difference between A, ``first``, and B, ``second`` -> lines for people."""
    changed = [row for row in rows if row.ratio not in (None, 1.0)]
    same = sum(row.ratio == 1.0 for row in rows)
    width = max((len(row.tensor) for row in changed), default=6)
    lines = [f"{len(changed)} of {len(changed) + same} common tensors differ"]
    if changed:
        lines.append(f"{'tensor':{width}}  {'amax in A':>13}  {'amax in B':>13}  {'B / A':>10}")
    lines += [
        f"{row.tensor:{width}}  {_amax(row.first):13.6g}  {_amax(row.second):13.6g}  {row.ratio:10.4g}"
        for row in changed
    ]
    for file, missing in (
        (first, [row.tensor for row in rows if row.second is None]),
        (second, [row.tensor for row in rows if row.first is None]),
    ):
        if missing:
            lines.append(f"only in {file}: {_few(missing)}")
    return lines


def _amax(scale: Any) -> float:
    """Of any scale, inf and nan included, without a warning of overflow."""
    return float(scale) * 127


def _print_json(tree: Any) -> None:
    """JSON knows no inf and no nan: they become text."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(below) for key, below in value.items()}
        if isinstance(value, list):
            return [finite(below) for below in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    print_out(json.dumps(finite(tree), indent=2, allow_nan=False))
