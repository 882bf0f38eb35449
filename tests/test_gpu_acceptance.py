"""The acceptance script: what it may claim, what it survives, and that its expectations can fail.

Nothing here is TensorRT's. Where a test needs caches "that TensorRT wrote", it writes them itself, by the algorithm as
we believe it to be or with one rule of it broken.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakecuda
import numpy as np
import oracle
import pytest
from acceptance import building, facts, networks, parity, rules, steps
from acceptance.findings import Context, Finding, as_rehearsed, attempt, compared, measured, status
from acceptance.record import markdown
from fakecuda import setup_env

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
from trtcal.errors import BackendError
from trtcal.model.open import FloatRunner, open_model
from trtcal.ranges.histogram import Histogram
from trtcal.ranges.stats import ActivationStats

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_acceptance.py"
RULES = dict(rules.Rules().broken())


def run_script(*arguments: object, script: Path = SCRIPT, **settings: Any) -> subprocess.CompletedProcess[str]:
    return fakecuda.start(str(script), *map(str, arguments), full_name=True, timeout=400, **settings)


def record_in(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


# --- the dry run


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A whole run on the test doubles, without the flag that says so."""
    folder = tmp_path_factory.mktemp("dry")
    return run_script("--output", folder), folder


@pytest.mark.slow
def test_a_run_on_test_doubles_goes_through_every_step_and_measures_nothing(
    dry: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = dry
    record = record_in(folder)
    assert list(record["steps"]) == [step.name for step in steps.STEPS]
    failed = [
        (name, finding) for name, step in record["steps"].items() for finding in step["findings"] if "error" in finding
    ]
    found = {name: step["status"] for name, step in record["steps"].items()}
    assert set(found.values()) <= {"not measured", "skipped"}, (found, failed)
    assert all(found[name] == "not measured" for name in found if name.startswith(("parity", "facts", "calls")))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_on_test_doubles_says_so_without_being_told(
    dry: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    record = record_in(dry[1])
    assert record["dry_run"] is True
    assert record["doubles"] == ["libcuda.so.1", "libnvinfer.so.10"]
    verdicts = {finding["verdict"] for step in record["steps"].values() for finding in step["findings"]}
    assert verdicts == {"not measured", "skipped"}
    (page,) = dry[1].glob("*dry-run.md")
    assert "Dry run on test doubles" in page.read_text()


@pytest.mark.slow
def test_the_record_has_its_promised_form(dry: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    record = record_in(dry[1])
    assert {"tensorrt", "gpu", "date", "dry_run", "steps"} <= record.keys()
    assert {"name", "driver"} <= record["gpu"].keys()
    assert record["tensorrt"].startswith("10.")
    for step in record["steps"].values():
        assert {"what", "status", "seconds", "findings"} <= step.keys()
        assert all({"question", "verdict"} <= finding.keys() for finding in step["findings"])


@pytest.mark.slow
def test_where_the_doubles_run_kernels_their_steps_are_rehearsed_too(tmp_path: Path) -> None:
    run_script("--only", "gpu-stats", "kernel", "--output", tmp_path, kernels=True)
    record = record_in(tmp_path)
    for name in ("gpu-stats", "kernel"):
        findings = record["steps"][name]["findings"]
        assert {finding["verdict"] for finding in findings} == {"not measured"}, findings
        assert len(findings) == 3


# --- which library it is decides, and not the flag


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The doubles without the symbols that give them away: what real libraries look like from here."""
    folder = tmp_path_factory.mktemp("renamed") / "libraries"
    try:
        shutil.copytree(setup_env.libraries(), folder, symlinks=True)
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    for name, symbol in (("libcuda.so.1", b"fakecuda_live"), ("libnvinfer.so.10", b"trtfake_live")):
        data = (folder / name).read_bytes()
        assert symbol in data
        (folder / name).write_bytes(data.replace(symbol, symbol.replace(b"live", b"gone")))
    return folder


def test_a_dry_run_is_refused_where_the_libraries_are_real(renamed: Path, tmp_path: Path) -> None:
    done = run_script("--dry-run", "--output", tmp_path, LD_LIBRARY_PATH=str(renamed))
    record = record_in(tmp_path)
    assert done.returncode == 2
    assert record["dry_run"] is False
    assert "real" in record["error"]
    assert list(record["steps"]) == ["machine"]


def test_what_looks_real_is_judged(renamed: Path, tmp_path: Path) -> None:
    done = run_script("--only", "guards", "--output", tmp_path, LD_LIBRARY_PATH=str(renamed))
    record = record_in(tmp_path)
    assert record["dry_run"] is False
    assert record["steps"]["guards"]["status"] == "ok"
    assert done.returncode == 0


@pytest.mark.parametrize("double", ["libcuda.so.1", "libnvinfer.so.10"])
def test_one_double_is_enough_for_a_dry_run(renamed: Path, double: str, tmp_path: Path) -> None:
    mixed = tmp_path / "libraries"
    shutil.copytree(renamed, mixed, symlinks=True)
    shutil.copy(setup_env.libraries() / double, mixed / double)
    run_script("--only", "machine", "--output", tmp_path / "out", LD_LIBRARY_PATH=str(mixed))
    record = record_in(tmp_path / "out")
    assert record["dry_run"] is True
    assert record["doubles"] == [double]


def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    done = run_script("--output", tmp_path / "out", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert "no GPU" in record_in(tmp_path / "out")["error"]


def test_the_real_tensorrt_without_a_gpu_is_no_crash(tmp_path: Path) -> None:
    try:
        python, packages = setup_env.tensorrt8()
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    environment = {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": f"{tmp_path}:{packages / 'lib'}", "PATH": "/usr/bin"}
    command = [python, str(SCRIPT), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no GPU" in record_in(tmp_path / "out")["error"]


# --- a step that fails takes nothing with it

FRONT = """
import ctypes, json, os, sys, time
from pathlib import Path
sys.path.insert(0, {scripts!r})
import gpu_acceptance
from acceptance import steps
from acceptance.findings import Skip, Step, compared, measured

def good(context):
    yield measured("a number", 1)
def bad(context):
    yield measured("before", 1)
    raise ValueError("planned")
def leaves(context):
    yield measured("before", 1)
    os._exit(0)
def crashes(context):
    yield measured("before", 1)
    ctypes.string_at(0)
def hangs(context):
    yield measured("before", os.getpid())
    time.sleep(600)
def skips(context):
    raise Skip("no reason")
    yield
def looks(context):
    (record,) = Path(os.environ["RECORD"]).glob("*.json")
    (page,) = Path(os.environ["RECORD"]).glob("*.md")
    seen = json.loads(record.read_text())
    yield measured("seen", dict((name, step["status"]) for name, step in seen["steps"].items()), page=page.read_text())
def empty(context):
    return []

functions = [good, bad, leaves, crashes, hangs, skips, empty, looks]
made = [Step(run.__name__, "made up", run, 7 if run is hangs else 60) for run in functions]
steps.all_steps = lambda models: (steps.MACHINE, *made)
sys.exit(gpu_acceptance.main())
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """A run of steps that fail in every way, with the fakes in place of TensorRT."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "tmp").mkdir()
    front = folder / "front.py"
    front.write_text(FRONT.format(scripts=str(SCRIPT.parent)))
    done = run_script("--output", folder / "out", script=front, RECORD=str(folder / "out"), TMPDIR=str(folder / "tmp"))
    assert not list((folder / "tmp").iterdir())  # whatever failed, nothing is left behind
    return done, record_in(folder / "out")


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("bad", "error", "ValueError: planned"),
        ("leaves", "crashed", "exit code 0, and unfinished"),
        ("crashes", "crashed", "SIGSEGV"),
        ("hangs", "timed out", "did not end within 7 s"),
    ],
)
def test_a_step_that_fails_is_recorded_with_what_it_had_found(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any]], name: str, outcome: str, words: str
) -> None:
    step = broken[1]["steps"][name]
    assert step["status"] == outcome
    assert words in step["error"]
    assert [finding["question"] for finding in step["findings"]] == ["before"]


def test_a_step_that_hangs_is_ended_and_says_where(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    step = broken[1]["steps"]["hangs"]
    with pytest.raises(ProcessLookupError):
        os.kill(step["findings"][0]["got"], 0)
    assert "in hangs" in step["error"]


def test_a_run_that_is_killed_leaves_no_step_behind(tmp_path: Path) -> None:
    front = tmp_path / "front.py"
    front.write_text(FRONT.format(scripts=str(SCRIPT.parent)))
    command = [sys.executable, str(front), "--only", "hangs", "--output", str(tmp_path / "out")]
    environment = fakecuda.environment(full_name=True, TMPDIR=str(tmp_path))
    run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while run.poll() is None and not (found := findings_of_hangs(tmp_path / "out")):
            time.sleep(0.05)
        assert run.poll() is None
    finally:
        run.kill()
        run.wait()
    child, waited = found[0]["got"], 0
    while is_alive(child) and waited < 200:
        time.sleep(0.05)
        waited += 1
    if is_alive(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the step is still running")


def findings_of_hangs(folder: Path) -> list[dict[str, Any]]:
    if not list(folder.glob("*.json")):
        return []
    found: list[dict[str, Any]] = record_in(folder)["steps"].get("hangs", {}).get("findings", [])
    return found


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait for somebody to ask how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_the_steps_after_it_run_all_the_same(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, record = broken
    found = {name: step["status"] for name, step in record["steps"].items()}
    assert found["good"] == found["looks"] == "not measured"
    assert found["skips"] == "skipped"
    assert found["empty"] == "empty"
    assert done.returncode == 1


def test_what_is_done_is_in_the_files_while_the_rest_runs(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    (seen,) = broken[1]["steps"]["looks"]["findings"]
    others = {name: step["status"] for name, step in broken[1]["steps"].items() if name != "looks"}
    assert {**seen["got"], "looks": None} == {**others, "looks": None}
    assert "| crashes | **crashed**" in seen["details"]["page"]


def test_a_step_without_time_is_named_and_not_begun(tmp_path: Path) -> None:
    done = run_script("--only", "guards", "--seconds", "0", "--output", tmp_path)
    step = record_in(tmp_path)["steps"]["guards"]
    assert (step["status"], step["findings"]) == ("not run", [])
    assert done.returncode == 1


# --- the command line


def test_an_unknown_step_is_named_before_anything_runs(tmp_path: Path) -> None:
    done = run_script("--only", "nonsense", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "no step 'nonsense'; there are machine, calls" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_list_names_every_step() -> None:
    listed = subprocess.run([sys.executable, SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == [step.name for step in steps.STEPS]


def test_every_step_is_described_on_the_page() -> None:
    page = (ROOT / "docs" / "parity.md").read_text()
    missing = [step.name for step in steps.STEPS if f"`{step.name}`" not in page]
    assert not missing


def test_a_model_by_path_brings_its_data_and_gets_a_step(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(networks.one_layer(None, 8))
    np.savez(tmp_path / "calibration.npz", x=np.ones((6, 1, 1, 8), np.float32))
    model = networks.by_path(str(tmp_path / "tiny.onnx"))
    assert (model.name, model.count, model.load_labelled) == ("tiny", 6, None)
    assert [len(batch["x"]) for batch in model.batches(range(6), 4)] == [4]
    assert "parity-tiny" in [step.name for step in steps.all_steps([model])]


def test_a_model_by_path_may_name_its_data_and_labels(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"")
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 8), np.float32), labels=np.array([1, 0]))
    model = networks.by_path(f"{tmp_path / 'tiny.onnx'},{tmp_path / 'a.npz'},{tmp_path / 'b.npz'}")
    assert model.load_labelled is not None
    inputs, labels = model.load_labelled()
    assert (model.count, inputs["x"].shape, labels.tolist()) == (3, (2, 8), [1, 0])


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"there is no .*calibration\.npz"):
        networks.by_path(str(tmp_path / "tiny.onnx"))


# --- the rules written out, and every expectation failing for a broken one


@pytest.mark.parametrize("experiment", facts.EXPERIMENTS, ids=lambda experiment: experiment.question)
def test_the_rules_written_out_are_trtcal_s_and_the_oracle_s(experiment: facts.Experiment) -> None:
    batches = experiment.batches()
    histogram = oracle.Hist()
    for batch in batches:
        histogram.update(batch)
    expected = oracle.scale_from_bin(oracle.entropy_bin(histogram.h), histogram.R)
    assert rules.scale(batches) == facts.our_scale(batches) == expected


def written(batches: list[np.ndarray], changed: rules.Rules | None = None) -> bytes:
    """The cache that a TensorRT with these rules would write for a tensor x."""
    return CalibrationCache("8600", "EntropyCalibration2", {"x": rules.scale(batches, changed)}).format()


@pytest.mark.parametrize("experiment", facts.EXPERIMENTS, ids=lambda experiment: experiment.question)
def test_an_experiment_agrees_with_the_rules_as_believed(experiment: facts.Experiment) -> None:
    assert facts.judge(experiment, written(experiment.batches())).verdict == "ok"


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_fails_the_experiment_that_is_there_for_it_and_is_named(name: str) -> None:
    field = name.partition("=")[0]
    found = []
    for experiment in facts.EXPERIMENTS:
        if field in experiment.settles:
            finding = facts.judge(experiment, written(experiment.batches(), RULES[name]))
            found.append((finding.verdict, name in finding.details.get("explained_by", [])))
            if found[-1] == ("differs", True):
                return
    pytest.fail(f"no experiment tells {name} apart: {found}")


def test_a_cache_without_the_tensor_is_no_agreement() -> None:
    cache = CalibrationCache("8600", "EntropyCalibration2", {"y": np.float32(1)}).format()
    finding = facts.judge(facts.EXPERIMENTS[0], cache)
    assert (finding.verdict, finding.got) == ("differs", None)


@cache
def calibrated(size: int) -> tuple[Any, Any, dict[str, list[np.ndarray]]]:
    """The demo model's graph, our calibration of 64 samples, and the values of every tensor, batch by batch."""
    model = networks.demo_model()
    graph = open_model(model.path)
    batches = model.batches(range(64), size)
    values: dict[str, list[np.ndarray]] = {}
    with FloatRunner(graph) as runner:
        for batch in batches:
            rows = [runner({"image": batch["image"][row : row + 1]}) for row in range(size)]
            for name in rows[0]:
                values.setdefault(name, []).append(np.concatenate([row[name] for row in rows]))
    return graph, calibrate(graph, batches), values


def judged(size: int, changed: rules.Rules | None, kind: str = "entropy") -> list[Finding]:
    """What parity says of a cache that a TensorRT with these rules would write for the demo model."""
    graph, calibration, values = calibrated(size)
    ours = parity.ours_for(graph, calibration.stats, kind)
    sources = {name: graph.calibrated.carried.get(name, name) for name in ours.scales}
    found = {source: rules.scale(values[source], changed) for source in set(sources.values()) & set(values)}
    scales = {name: found.get(source, ours.scales[name]) for name, source in sources.items()}
    theirs = CalibrationCache("8600", "EntropyCalibration2", scales)
    limits = parity.limits_of(graph, calibration.stats)
    return list(parity.compare(ours, theirs, kind, limits, frozenset({"image"})))


def verdicts(findings: list[Finding]) -> set[str]:
    return {finding.verdict for finding in findings}


@pytest.mark.parametrize("size", [4, 16])
def test_parity_agrees_with_the_rules_as_believed(size: int) -> None:
    findings = judged(size, None)
    assert verdicts(findings) == {"ok"}
    assert any("keep fewer than" in finding.question for finding in findings)  # the demo has such a tensor


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("start=129", 16),
        ("threshold=edge of the bin", 16),
        ("threshold=edge of the next bin", 16),
        ("growth=times 4", 4),
        ("growth=square-max", 4),
        ("growth=whole data", 4),
        ("growth=next power of two", 4),
        ("zero_bin=kept", 4),
        ("levels=whole bins", 4),
        ("outliers=in P and Q", 4),
        ("outliers=dropped", 4),
    ],
)
def test_parity_fails_for_a_broken_rule(name: str, size: int) -> None:
    assert "differs" in verdicts(judged(size, RULES[name]))


@pytest.mark.parametrize("name", ["threshold=edge of the bin", "threshold=edge of the next bin"])
def test_half_a_bin_shows_in_every_tensor_and_not_in_the_inputs_alone(name: str) -> None:
    (bins,) = [finding for finding in judged(16, RULES[name]) if finding.question.startswith("|Δm|")]
    assert bins.verdict == "differs"
    assert bins.got["same"] <= 2  # two constants, which are ours in both caches here


SMALL = Context(None, [], Path(), ["a double, so that the smallest case will do"], math.inf)


def louder(stats: ActivationStats) -> ActivationStats:
    """The statistics of a machine whose every layer but the input computes a tenth more."""
    tensors = {
        name: tensor
        if name == "image"
        else replace(
            tensor,
            sample_amax=tensor.sample_amax * np.float32(1.1),
            streamed=Histogram(
                tensor.streamed.counts, tensor.streamed.limit * 1.1, tensor.streamed.amax * np.float32(1.1)
            ),
        )
        for name, tensor in stats.tensors.items()
        if tensor.streamed is not None
    }
    return replace(stats, tensors=tensors)


@pytest.fixture
def parity_on_a_louder_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT follows our rules exactly, on a GPU whose activations are not the CPU's."""

    def collected(graph: Any, batches: Any) -> ActivationStats:
        return louder(calibrate(graph, batches).stats)

    @contextmanager
    def collecting(graph: Any) -> Iterator[Any]:
        yield partial(collected, graph)

    def calibrated(context: Context, model: networks.Model, batches: Any, algorithm: str) -> CalibrationCache:
        kinds = {name: kind for kind, name in parity.ALGORITHMS.items()}
        graph = open_model(model.path)
        return parity.ours_for(graph, collected(graph, batches), kinds[algorithm])

    monkeypatch.setattr(parity, "collecting_on_gpu", collecting)
    monkeypatch.setattr(parity, "calibrated", calibrated)


@pytest.mark.usefixtures("parity_on_a_louder_gpu")
def test_ranges_of_the_gpu_tell_other_activations_from_another_rule() -> None:
    found = list(parity.model_parity(networks.demo_model(), SMALL))
    bins = {finding.question: finding.verdict for finding in found if "|Δm|" in finding.question}
    (cpu,) = [verdict for question, verdict in bins.items() if parity.ON_GPU not in question]
    (gpu,) = [verdict for question, verdict in bins.items() if question.startswith(f"{parity.ON_GPU}, batch 16, given")]
    assert (cpu, gpu) == ("differs", "ok")
    assert {finding.verdict for finding in found if finding.question.startswith(parity.ON_GPU)} == {"ok"}


@pytest.mark.usefixtures("parity_on_a_louder_gpu")
def test_where_no_ranges_can_be_collected_on_the_gpu_parity_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def collecting(graph: Any) -> Iterator[Any]:
        raise BackendError("no NVRTC")
        yield

    monkeypatch.setattr(parity, "collecting_on_gpu", collecting)
    *others, last = parity.model_parity(networks.demo_model(), SMALL)
    assert (last.question, last.verdict) == (parity.ON_GPU, "skipped")
    assert last.got == "no ranges can be collected on this GPU: no NVRTC"
    assert len(others) > 9


def small(**scales: float) -> CalibrationCache:
    return CalibrationCache("8600", "MinMaxCalibration", {name: np.float32(value) for name, value in scales.items()})


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("minmax", small(x=1.0, a=2.0, b=3.01)),  # one of three, by a third of a percent
        ("minmax", small(x=np.nextafter(np.float32(1), np.float32(2)), a=2.0, b=3.0)),  # an input, by one bit
        ("minmax", small(x=1.0, a=2.0, b=3.0, c=1.0)),  # a tensor that we do not have
        ("minmax", small(a=2.0, b=3.0)),  # no input to look at
        ("minmax", small()),  # nothing
        ("minmax", small(x=1.0, a=np.inf, b=3.0)),
        ("legacy", small(x=1.0, a=2.1, b=3.2)),
    ],
)
def test_parity_of_other_calibrators_can_fail(kind: str, theirs: CalibrationCache) -> None:
    ours = small(x=1.0, a=2.0, b=3.0)
    assert "differs" in verdicts(list(parity.compare(ours, theirs, kind, {}, frozenset({"x"}))))
    assert verdicts(list(parity.compare(ours, ours, kind, {}, frozenset({"x"})))) == {"ok"}


def test_tensors_that_the_parser_makes_are_no_lack_of_ours() -> None:
    theirs = CalibrationCache(
        "8600", "MinMaxCalibration", {"x": np.float32(1), "(Unnamed Layer* 3) [Shuffle]_output": 1}
    )
    (coverage, *_) = parity.compare(small(x=1.0), theirs, "minmax", {}, frozenset({"x"}))
    assert coverage.verdict == "ok"


# --- what is kept of a build


def test_what_is_kept_of_a_log_is_not_where_memory_went() -> None:
    memory = [f"INFO: [MemUsageChange] Init CUDA: CPU +{number}" for number in range(40)]
    wanted = ["WARNING: Missing scale and zero-point for tensor y", "INFO: Calibration Profile is not defined."]
    assert building.telling([wanted[0], *memory, wanted[1], *memory]) == wanted


@pytest.mark.parametrize("works", [0, None, "never"])
def test_a_build_that_fails_at_the_fastest_level_is_tried_at_tensorrts_own(
    works: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = []

    def build(context: Context, model: bytes, calibrator: Any, *, level: int | None, **_: Any) -> None:
        levels.append(level)
        calibrator.read_calibration_cache()
        if level != works:
            raise building.BuildFailed("no kernel")
        calibrator.write_calibration_cache(b"TRT-8600-EntropyCalibration2\n")

    monkeypatch.setattr(building, "build", build)
    monkeypatch.setattr(building, "device", lambda: None)
    monkeypatch.setattr(building, "_log", list)
    context = Context(SimpleNamespace(IInt8EntropyCalibrator2=object), [], Path(), [], 0.0)
    record = building.observe(context, b"", []).record()
    assert levels == ([0] if works == 0 else [0, None])
    assert record["built"] is (works != "never")
    assert record["cache"] == (None if works == "never" else "TRT-8600-EntropyCalibration2\n")
    assert record["calls"].count("read_calibration_cache") == 1


# --- findings


def test_doubles_turn_agreement_and_difference_alike_into_not_measured() -> None:
    for finding in (compared("q", 1, 1), compared("q", 1, 2), measured("q", 1)):
        assert as_rehearsed(finding) == replace(finding, verdict="not measured")


def test_a_question_that_raises_is_a_finding_and_the_next_is_asked() -> None:
    def raises() -> Finding:
        raise ValueError("planned")

    (finding,) = attempt("q", raises)
    assert (finding.verdict, finding.got) == ("error", "ValueError: planned")
    assert "raise ValueError" in " ".join(finding.details["trace"])


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (["ok", "measured", "skipped"], "ok"),
        (["ok", "differs"], "differs"),
        (["differs", "error"], "error"),
        (["skipped", "measured"], "measured"),
        (["skipped"], "skipped"),
        ([], "empty"),
    ],
)
def test_the_worst_finding_names_the_step(found: list[str], word: str) -> None:
    assert status({"verdict": verdict} for verdict in found) == word


def test_a_page_keeps_its_table_whatever_is_in_a_cell() -> None:
    finding = {"question": "a | b", "verdict": "ok", "got": "<x>\ny" + "z" * 400}
    data = {"date": "d", "dry_run": False, "tensorrt": "8", "gpu": {}, "steps": {}}
    data["steps"] = {"s": {"what": "w", "status": "ok", "seconds": 1, "findings": [finding]}}
    (row,) = [line for line in markdown(data) if line.startswith("| a")]
    assert row.startswith("| a \\| b | ok | &lt;x> yz")
    assert len(row) < 250


def test_a_context_is_small_for_doubles_alone() -> None:
    real = Context(None, [], Path(), [], 0.0)
    assert not real.small
    assert replace(real, doubles=["libcuda.so.1"]).small
