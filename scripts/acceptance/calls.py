"""In what order TensorRT calls a calibrator, what it does with each kind of cache, and what becomes of failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from acceptance import building, networks
from acceptance.facts import our_scale
from acceptance.findings import Context, Finding, attempt, compared, measured
from calibrators import versions
from trtcal.cache.cache import CalibrationCache, version_number
from trtcal.errors import DataError, NonFiniteError, TrtcalError

WIDTH = 256


def _batches(count: int, rows: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=(rows, 1, 1, WIDTH)).astype(np.float32) * (number + 1)} for number in range(count)]


def order_of_calls(context: Context) -> Iterator[Finding]:
    """Fresh, with caches of every kind, and with data that fail."""
    yield from attempt("fresh: three batches, then the cache is written", partial(_fresh, context))
    own = version_number(versions.dotted(context.trt))
    eight = len(own) == 4
    entropy = "EntropyCalibration2"
    # what the cache is -> its bytes, and whether TensorRT is expected to take it; None where nobody knows
    caches: list[tuple[str, bytes, bool | None]] = [
        ("its own header", _cache(f"TRT-{own}-{entropy}"), True),
        ("another version of the same major", _cache(f"TRT-{'8501' if eight else '100001'}-{entropy}"), True),
        ("another major version", _cache(f"TRT-{'100300' if eight else '8601'}-{entropy}"), False),
        ("TensorRT 7's header", _cache(f"TRT-7103-{entropy}"), False),
        ("another algorithm", _cache(f"TRT-{own}-MinMaxCalibration"), False),
        ("a header of letters", _cache(f"TRT-8XXX-{entropy}"), None),
        ("a bare number as header", _cache("1"), None),
        ("no scale for y", _cache(f"TRT-{own}-{entropy}", "x"), True),
        ("scales for tensors that are not there", _cache(f"TRT-{own}-{entropy}", "x", "y", "ghost"), None),
        ("only tensors that are not there", _cache(f"TRT-{own}-{entropy}", "ghost"), None),
        ("CR LF line ends", _cache(f"TRT-{own}-{entropy}").replace(b"\n", b"\r\n"), None),
        ("no last line end", _cache(f"TRT-{own}-{entropy}").rstrip(b"\n"), None),
        ("no bytes at all", b"", False),
    ]
    for what, cache, taken in caches:
        yield from attempt(f"cache: {what}", partial(_with_cache, context, f"cache: {what}", cache, taken))
    yield from attempt("cache refused and no data: is anything built?", partial(_refused_without_data, context, own))
    yield from attempt("no data at all", partial(_no_data, context))
    for failing in (2, 0):
        question = f"an exception in batch {failing + 1} of 6 is swallowed, and a cache of what came before written"
        yield from attempt(question, partial(_swallowed, context, question, failing))


def _cache(header: str, *names: str) -> bytes:
    return "".join([f"{header}\n", *(f"{name}: 3c010a14\n" for name in names or ("x", "y"))]).encode()


def _observe(context: Context, count: int = 3, **options: Any) -> building.Observed:
    return building.observe(context, networks.one_layer(4, WIDTH), _batches(count), **options)


def _fresh(context: Context) -> Iterator[Finding]:
    question = "fresh: three batches, then the cache is written"
    observed = _observe(context)
    counts = Counter(observed.calls)
    promised = (
        observed.built
        and counts["get_batch"] == 4
        and counts["write_calibration_cache"] == 1
        and observed.calls[-1] == "write_calibration_cache"
        and counts["read_calibration_cache"] >= 1
    )
    yield compared(question, observed.calls, "reads, 3 batches and an end, 1 write", promised, **observed.record())
    yield measured("the thread that asks for batches", sorted(observed.threads))
    kinds = {"MinMaxCalibration": "MinMax", "EntropyCalibration": "Entropy (1)", "LegacyCalibration": "Legacy"}
    for algorithm, name in kinds.items():
        yield from attempt(f"calls of {name}", partial(_calls_of, context, algorithm, name))


def _calls_of(context: Context, algorithm: str, name: str) -> Finding:
    observed = _observe(context, algorithm=algorithm)
    return measured(f"calls of {name}", observed.calls, **observed.record())


def _with_cache(context: Context, question: str, cache: bytes, taken: bool | None) -> Finding:
    observed = _observe(context, cache=cache)
    asked = observed.calls.count("get_batch")
    got = "used" if observed.built and not asked else "calibrated anew" if observed.built else "no plan"
    if taken is None:
        return measured(question, got, **observed.record())
    return compared(question, got, "used" if taken else "calibrated anew", **observed.record())


def _refused_without_data(context: Context, own: str) -> Finding:
    observed = _observe(context, count=0, cache=_cache(f"TRT-{own}-MinMaxCalibration"))
    return measured("cache refused and no data: is anything built?", observed.built, **observed.record())


def _no_data(context: Context) -> Finding:
    observed = _observe(context, count=0)
    found = observed.record()
    return measured("no data at all", {"built": found["built"], "cache": found["cache"]}, **found)


def _swallowed(context: Context, question: str, failing: int) -> Finding:
    observed = _observe(context, count=6, fail_at=failing)
    scale = None if observed.written is None else CalibrationCache.parse(observed.written).scales.get("x")
    if not failing:
        return measured(question, {"built": observed.built, "scale": scale}, **observed.record())
    expected = our_scale([batch["x"] for batch in _batches(failing)])
    return compared(question, scale, expected, **observed.record())


def our_guards(context: Context) -> Iterator[Finding]:
    """What our calibrators make of the same failures: an error, no cache, and no wrong-sized buffer handed over."""
    from calibrators import EntropyCalibrator, MinMaxCalibrator

    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield from _batches(2)
        raise OSError("planned")

    short = [*_batches(2), _batches(1, rows=2)[0]]
    spoilt = _batches(3)
    spoilt[2]["x"].flat[5] = np.nan
    plan: list[tuple[str, Any, type[BaseException] | None, Any]] = [
        ("our EntropyCalibrator, all well", _batches(3), None, EntropyCalibrator),
        ("our MinMaxCalibrator, all well", _batches(3), None, MinMaxCalibrator),
        ("the loader raises in batch 3", failing(), DataError, EntropyCalibrator),
        ("batches of 2 for a network of 4", _batches(3, rows=2), DataError, EntropyCalibrator),
        ("batches of 8 for a network of 4", _batches(3, rows=8), DataError, EntropyCalibrator),
        ("a last, shorter batch", short, DataError, EntropyCalibrator),
        ("a nan in batch 3", spoilt, NonFiniteError, EntropyCalibrator),
        ("no batches", [], DataError, EntropyCalibrator),
    ]
    for question, batches, error, kind in plan:
        yield from attempt(question, partial(_outcome, context, question, batches, error, kind))


def _outcome(context: Context, question: str, batches: Any, error: type[BaseException] | None, kind: Any) -> Finding:
    cache = context.folder / "guards.cache"
    cache.unlink(missing_ok=True)
    calibrator = kind(batches, cache=cache, policy="write")
    raised: str | None = None
    try:
        with calibrator:
            building.build(context, networks.one_layer(4, WIDTH), calibrator, expect=True)
    except TrtcalError as found:
        raised = type(found).__name__
    got = {"raised": raised, "cache written": cache.exists()}
    expected = {"raised": None if error is None else error.__name__, "cache written": error is None}
    return compared(question, got, expected, consumed=calibrator.feed.consumed)
