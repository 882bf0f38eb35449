"""The tests of tests/gpu and what runs them: what they may claim, what they survive, and that each of them can fail.

Nothing here is TensorRT's. Where a test needs what "TensorRT" answers, test doubles answer by the algorithm as we
believe it to be, or with one rule of it broken.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import builds
import experiments
import fakecuda
import gpu_acceptance
import layers
import nets
import numpy as np
import oracle
import parity
import pytest
from acceptance import rules, truth
from fakecuda import setup_env

from trtcal.cache.cache import CalibrationCache
from trtcal.calibration.calibrate import calibrate
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


def outcomes(record: dict[str, Any]) -> dict[str, str]:
    """By the test's own name, without its file."""
    return {name.split("::")[-1]: test["outcome"] for name, test in record["tests"].items()}


# --- the dry run


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A whole run on the test doubles, without the flag that says so."""
    folder = tmp_path_factory.mktemp("dry")
    return run_script("--output", folder, kernels=True), folder


@pytest.mark.slow(reason="runs all tests for a GPU on test doubles")
@pytest.mark.exhaustive(reason="runs all tests for a GPU on test doubles")
def test_every_test_agrees_with_doubles_that_do_as_is_believed_and_nothing_is_measured(
    dry: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = dry
    record = record_in(folder)
    assert set(outcomes(record).values()) == {"not measured", "skipped"}, outcomes(record)
    skipped = [test["why"] for test in record["tests"].values() if test["outcome"] == "skipped"]
    assert all(any(word in why for word in ("the test doubles", "torch", "Polygraphy")) for why in skipped), skipped
    files = list(dict.fromkeys(name.partition("::")[0] for name in record["tests"]))
    assert files == [f"tests/gpu/test_{name}.py" for name in gpu_acceptance.ORDER]
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(reason="runs all tests for a GPU on test doubles")
@pytest.mark.exhaustive(reason="runs all tests for a GPU on test doubles")
def test_a_run_on_test_doubles_says_so_without_being_told(
    dry: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    record = record_in(dry[1])
    assert record["dry_run"] is True
    assert record["doubles"] == ["libcuda.so.1", "libnvinfer.so.10"]
    (page,) = dry[1].glob("*dry-run.md")
    assert "Dry run on test doubles" in page.read_text()


@pytest.mark.slow(reason="runs all tests for a GPU on test doubles")
@pytest.mark.exhaustive(reason="runs all tests for a GPU on test doubles")
def test_the_record_says_on_what_and_how_long_and_keeps_the_caches(
    dry: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    record = record_in(dry[1])
    assert {"name", "driver", "cuda", "compute_capability"} <= record["gpu"].keys()
    assert {"python", "system", "numpy", "onnxruntime", "pytest"} <= record["host"].keys()
    assert record["tensorrt"] == fakecuda.TENSORRT
    for test in record["tests"].values():
        assert {"outcome", "seconds", "estimate"} <= test.keys()
    for name in ("test_rules", "test_parity"):
        kept = [test["facts"] for key, test in record["tests"].items() if name in key and "_is_ours" in key]
        assert all(CalibrationCache.parse(facts["cache"].encode()).scales for facts in kept if "cache" in facts)
        assert any("cache" in facts for facts in kept)


def test_every_file_of_gpu_tests_has_its_place_in_the_order_and_on_the_page() -> None:
    there = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "gpu").glob("test_*.py")}
    assert set(gpu_acceptance.ORDER) == there
    page = (ROOT / "docs" / "parity.md").read_text()
    assert not [name for name in there if f"`test_{name}.py`" not in page]


ESTIMATES = """
import pytest
class Sum:
    def pytest_collection_modifyitems(self, items):
        print("seconds", [sum(item.get_closest_marker("seconds").args[0] for item in items), len(items)])
pytest.main(["--collect-only", "-n0", "-qm", "gpu", "tests/gpu"], [Sum()])
"""


def test_all_tests_say_how_long_they_take_and_together_it_is_less_than_15_minutes() -> None:
    done = subprocess.run([sys.executable, "-c", ESTIMATES], cwd=ROOT, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    seconds, tests = json.loads(line.removeprefix("seconds "))
    assert tests > 100
    assert seconds < 15 * 60


@pytest.mark.slow(reason="runs all tests for a GPU on test doubles")
@pytest.mark.exhaustive(reason="runs all tests for a GPU on test doubles")
def test_a_broken_rule_fails_the_tests_that_are_there_for_it_and_is_named(tmp_path: Path) -> None:
    """The whole way: a builder, through genuine bindings, that takes four times the range instead of twice."""
    chosen = "(test_rules and control) or (test_parity and demo)"
    done = run_script("--output", tmp_path, "-k", chosen, TRTFAKE_RULES="growth=times 4", kernels=True)
    record = record_in(tmp_path)
    found = outcomes(record)
    rule = "test_the_scale_is_ours_to_the_last_bit[control: growth, maxima 1.54, then 2.4]"
    assert found[rule] == "failed"
    (test,) = [test for name, test in record["tests"].items() if rule in name]
    assert "explained by growth=times 4" in test["error"]
    assert found["test_the_scale_is_ours_to_the_last_bit[control: Laplace, one batch]"] == "not measured"
    assert found["test_the_cache_is_ours[demo-entropy-4-given]"] == "failed"
    assert found["test_the_entropy_cache_is_ours_of_the_gpus_own_activations[demo]"] == "failed"
    assert found["test_the_cache_is_ours[demo-minmax-4-given]"] == "not measured"
    (page,) = tmp_path.glob("*.md")
    assert "explained by growth=times 4" in page.read_text()
    assert done.returncode == 1


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


GUARDS = ("-k", "test_a_feed_that_fails and Entropy")


def test_a_dry_run_is_refused_where_the_libraries_are_real(renamed: Path, tmp_path: Path) -> None:
    front = tmp_path / "front.py"
    front.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu_acceptance\n"
        "gpu_acceptance._set_up_doubles = lambda: None\nsys.exit(gpu_acceptance.main())\n"
    )
    output = tmp_path / "out"
    done = run_script("--dry-run", "--output", output, *GUARDS, script=front, LD_LIBRARY_PATH=str(renamed))
    record = record_in(output)
    assert done.returncode == 2
    assert record["dry_run"] is False
    assert "real" in record["error"]
    assert not record["tests"]


def test_what_looks_real_is_judged(renamed: Path, tmp_path: Path) -> None:
    done = run_script("--output", tmp_path, *GUARDS, LD_LIBRARY_PATH=str(renamed))
    record = record_in(tmp_path)
    assert record["dry_run"] is False
    assert set(outcomes(record).values()) == {"passed"}
    assert done.returncode == 0


@pytest.mark.parametrize("double", ["libcuda.so.1", "libnvinfer.so.10"])
def test_one_double_is_enough_for_a_dry_run(renamed: Path, double: str, tmp_path: Path) -> None:
    mixed = tmp_path / "libraries"
    shutil.copytree(renamed, mixed, symlinks=True)
    shutil.copy(setup_env.libraries() / double, mixed / double)
    run_script("--output", tmp_path / "out", *GUARDS, LD_LIBRARY_PATH=str(mixed))
    record = record_in(tmp_path / "out")
    assert (record["dry_run"], record["doubles"]) == (True, [double])
    assert set(outcomes(record).values()) == {"not measured"}


def test_without_tensorrt_the_rest_runs_and_the_skips_say_how_to_run_them(tmp_path: Path) -> None:
    done = fakecuda.start(
        str(SCRIPT), "--output", str(tmp_path), "-k", "bytes_come_back or test_calls", trt=None, kernels=True
    )
    record = record_in(tmp_path)
    assert (done.returncode, record["tensorrt"]) == (0, None)
    assert {"not measured", "skipped"} == set(outcomes(record).values())
    why = {test["why"] for test in record["tests"].values() if test["outcome"] == "skipped"}
    assert all("TensorRT is not installed" in text and "python scripts/gpu_acceptance.py" in text for text in why)


@pytest.mark.parametrize("options", ["", "--cov --no-such-option"])
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path, options: str) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    done = run_script("--output", tmp_path / "out", LD_LIBRARY_PATH=str(tmp_path), PYTEST_ADDOPTS=options)
    assert done.returncode == 2
    assert "no GPU" in done.stdout
    assert "no GPU" in record_in(tmp_path / "out")["error"]


def test_the_real_tensorrt_without_a_gpu_is_no_crash(tmp_path: Path) -> None:
    try:
        python, packages = setup_env.tensorrt8()
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    if subprocess.run([python, "-c", "import cuda.bindings, pytest"], capture_output=True).returncode:
        pytest.skip(f"{python} has not what a host of TensorRT 8.6 would have: cuda-bindings, pytest")
    (tmp_path / "libcuda.so.1").write_bytes(b"")
    environment = {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": f"{tmp_path}:{packages / 'lib'}", "PATH": "/usr/bin"}
    command = [python, str(SCRIPT), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no GPU" in record_in(tmp_path / "out")["error"]


# --- a test that fails takes nothing with it

MADE_UP = """
import ctypes, json, os, time
from pathlib import Path
import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.seconds(0.5)]

def test_good(record_property):
    record_property("a number", 1)
def test_bad(record_property):
    record_property("before", 1)
    raise ValueError("planned")
def test_leaves():
    os._exit(0)
def test_crashes():
    ctypes.string_at(0)
def test_hangs():
    Path(os.environ["HANGING"]).write_text(str(os.getpid()))
    time.sleep(600)
def test_loses_the_gpu():
    ctypes.CDLL("libcuda.so.1").fakecuda_fail(b"cuStreamSynchronize:1:700:1000")
    assert False, "an illegal access"
def test_has_a_gpu():
    from device import lost
    assert lost() is None
def test_skips():
    pytest.skip("no reason")
@pytest.fixture
def unfit():
    raise OSError("no fixture")
def test_without_its_fixture(unfit):
    pass
def test_looks(record_property):
    time.sleep(0.5)  # who writes the record looks every now and then
    (record,) = Path(os.environ["RECORD"]).glob("*.json")
    (page,) = Path(os.environ["RECORD"]).glob("*.md")
    tests = json.loads(record.read_text())["tests"]
    record_property("seen", {name.split("::")[-1]: test["outcome"] for name, test in tests.items()})
    record_property("page", page.read_text())
"""


def made_up(folder: Path, *arguments: object) -> tuple[list[object], dict[str, str]]:
    """The arguments of a run of tests that fail in every way, and its variables."""
    (folder / "test_made_up.py").write_text(MADE_UP)
    (folder / "tmp").mkdir()
    variables = {"RECORD": str(folder / "out"), "HANGING": str(folder / "hanging"), "TMPDIR": str(folder / "tmp")}
    return [folder / "test_made_up.py", "--output", folder / "out", "--least", 8, *arguments], variables


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("broken")
    arguments, variables = made_up(folder)
    done = run_script(*arguments, **variables)
    left = [path.name for path in (folder / "tmp").iterdir() if not path.name.startswith("pytest-of-")]
    assert not left  # whatever failed, nothing is left behind
    return done, record_in(folder / "out"), folder


@pytest.mark.parametrize(
    ("name", "outcome", "words"),
    [
        ("bad", "failed", ["ValueError: planned"]),
        ("leaves", "crashed", ["ended with exit code 0"]),
        ("crashes", "crashed", ["ended by SIGSEGV", "in test_crashes"]),
        ("hangs", "timed out", ["did not end within 8 s", "in test_hangs"]),
        ("loses_the_gpu", "failed", ["an illegal access", "the CUDA context is lost: "]),
        ("without_its_fixture", "failed", ["OSError: no fixture"]),
    ],
)
def test_a_test_that_fails_is_recorded_with_its_reason(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any], Path], name: str, outcome: str, words: list[str]
) -> None:
    (test,) = [test for key, test in broken[1]["tests"].items() if key.endswith(f"::test_{name}")]
    assert test["outcome"] == outcome
    assert not [word for word in words if word not in test["error"]], test["error"]
    assert len(test["error"].splitlines()) < 50


def test_what_a_test_had_found_before_it_failed_is_kept(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any], Path],
) -> None:
    (test,) = [test for key, test in broken[1]["tests"].items() if key.endswith("::test_bad")]
    assert test["facts"] == {"before": 1}


def test_the_tests_after_it_run_all_the_same_and_with_a_gpu(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any], Path],
) -> None:
    found = outcomes(broken[1])
    assert {found[name] for name in ("test_good", "test_has_a_gpu", "test_looks")} == {"not measured"}
    assert found["test_skips"] == "skipped"
    assert broken[0].returncode == 1


def test_what_is_done_is_in_the_files_while_the_rest_runs(
    broken: tuple[subprocess.CompletedProcess[str], dict[str, Any], Path],
) -> None:
    (looked,) = [test["facts"] for name, test in broken[1]["tests"].items() if name.endswith("test_looks")]
    assert {**looked["seen"], "test_looks": None} == {**outcomes(broken[1]), "test_looks": None}
    assert "| test_crashes | **crashed** |" in looked["page"]


def test_a_test_that_hangs_is_ended(broken: tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(int((broken[2] / "hanging").read_text()), 0)


def test_a_run_that_is_killed_leaves_what_it_had_and_no_process_behind(tmp_path: Path) -> None:
    arguments, variables = made_up(tmp_path, "-k", "good or hangs", "--least", 300)
    environment = fakecuda.environment(full_name=True, **variables)
    run = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL
    )
    hanging = tmp_path / "hanging"

    def written() -> str:
        return "".join(path.read_text() for path in (tmp_path / "out").glob("*.md"))

    try:
        while run.poll() is None and not ("not measured" in written() and hanging.exists() and hanging.read_text()):
            time.sleep(0.05)
        assert run.poll() is None
    finally:
        run.kill()
        run.wait()
    assert outcomes(record_in(tmp_path / "out")) == {"test_good": "not measured", "test_hangs": "not run"}
    (page,) = (tmp_path / "out").glob("*.md")
    assert "| test_good | not measured |" in page.read_text()
    child, waited = int(hanging.read_text()), 0
    while is_alive(child) and waited < 200:
        time.sleep(0.05)
        waited += 1
    if is_alive(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("the test is still running")


def is_alive(process: int) -> bool:
    """Whether it runs; one that has ended may wait for somebody to ask how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_a_test_without_time_is_named_and_not_begun(tmp_path: Path) -> None:
    done = run_script("--seconds", "0", "--output", tmp_path, *GUARDS)
    record = record_in(tmp_path)
    assert set(outcomes(record).values()) == {"not run"}
    assert all("may take 2 s" in test["why"] for test in record["tests"].values())
    assert done.returncode == 1


def test_tests_that_cannot_be_collected_are_an_error_in_the_record(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text("import no_such_module\n")
    done = run_script(tmp_path / "test_wrong.py", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "No module named 'no_such_module'" in record_in(tmp_path / "out")["error"]


def test_a_dry_run_sets_up_its_doubles_by_itself(tmp_path: Path) -> None:
    try:
        setup_env.libraries(), setup_env.bindings(fakecuda.TENSORRT)
    except setup_env.Unavailable as error:
        pytest.skip(str(error))
    command = [sys.executable, str(SCRIPT), "--dry-run", "--output", str(tmp_path), *GUARDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert record_in(tmp_path)["dry_run"] is True


# --- models by path


def test_a_model_by_path_brings_its_data_and_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.onnx").write_bytes(nets.one_layer(None, 8))
    np.savez(tmp_path / "calibration.npz", x=np.ones((6, 1, 1, 8), np.float32))
    monkeypatch.setenv(nets.GIVEN, str(tmp_path / "tiny.onnx"))
    assert nets.names() == ["demo", "tiny", "residual", "branches"]
    model = nets.model("tiny")
    assert (model.name, model.count, model.load_labelled) == ("tiny", 6, None)
    assert [len(batch["x"]) for batch in model.batches(range(6), 4)] == [4]


def test_a_model_by_path_may_name_its_data_and_labels(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"")
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 8), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 8), np.float32), labels=np.array([1, 0]))
    model = nets.by_path(f"{tmp_path / 'tiny.onnx'},{tmp_path / 'a.npz'},{tmp_path / 'b.npz'}")
    assert model.load_labelled is not None
    inputs, labels = model.load_labelled()
    assert (model.count, inputs["x"].shape, labels.tolist()) == (3, (2, 8), [1, 0])


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"there is no .*calibration\.npz"):
        nets.by_path(str(tmp_path / "tiny.onnx"))


# --- the rules written out, and every expectation failing for a broken one


@pytest.mark.parametrize("experiment", experiments.EXPERIMENTS, ids=str)
def test_the_rules_written_out_are_trtcal_s_and_the_oracle_s(experiment: experiments.Experiment) -> None:
    batches = experiment.batches()
    histogram = oracle.Hist()
    for batch in batches:
        histogram.update(batch)
    expected = oracle.scale_from_bin(oracle.entropy_bin(histogram.h), histogram.R)
    assert rules.scale(batches) == experiments.our_scale(batches) == expected
    experiments.check(batches, expected)


def failure_of(experiment: experiments.Experiment, name: str) -> str:
    """What is said of the scale that a TensorRT which breaks this rule would write; nothing where it is ours."""
    batches = experiment.batches()
    try:
        experiments.check(batches, experiments.scales_by_broken_rules(batches)[name])
    except AssertionError as error:
        return str(error)
    return ""


EXHAUSTIVE = pytest.mark.exhaustive(reason="every way to break a rule; one of each rule is in every run")


def one_of_each(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases that begin with a broken rule -> the same, all but the first of each rule exhaustive."""
    seen: set[str] = set()
    marked = []
    for case in cases:
        rule = case[0].partition("=")[0]
        marked.append(pytest.param(*case, marks=[EXHAUSTIVE] * (rule in seen)))
        seen.add(rule)
    return marked


@pytest.mark.parametrize("name", one_of_each((name,) for name in RULES))
def test_a_scale_by_a_broken_rule_fails_the_experiment_that_is_there_for_it(name: str) -> None:
    """Or no GPU need be asked: a tensor of a network that TensorRT calibrated refutes it."""
    found = []
    for experiment in experiments.EXPERIMENTS:
        if name.partition("=")[0] in experiment.settles:
            said = failure_of(experiment, name)
            if name in said.partition("explained by ")[2].split(", "):
                return
            found.append(f"{experiment}: {said or 'agrees'}")
    for tensor in truth.load()[::10]:  # of all networks; all 185 are in tests/ranges/test_truth.py
        if truth.agrees(tensor, rules.Rules()) and not truth.agrees(tensor, RULES[name]):
            return
    pytest.fail(f"no experiment and no tensor tells {name} apart: {found}")


@pytest.mark.parametrize("field", ["index", "zero_bin", "start", "zero_batch", "merge", "ties", "least_bins"])
def test_what_is_open_has_an_experiment(field: str) -> None:
    assert any(field in experiment.settles for experiment in experiments.EXPERIMENTS)


def test_a_cache_without_the_tensor_is_no_agreement() -> None:
    with pytest.raises(AssertionError, match="no scale for x"):
        experiments.check(experiments.EXPERIMENTS[0].batches(), None)


@cache
def calibrated(size: int) -> tuple[Any, Any, dict[str, list[np.ndarray]]]:
    """The demo model's graph, our calibration of 64 samples, and the values of every tensor, batch by batch."""
    model = nets.model("demo")
    graph = open_model(model.path)
    batches = model.batches(range(64), size)
    values: dict[str, list[np.ndarray]] = {}
    with FloatRunner(graph) as runner:
        for batch in batches:
            rows = [runner({"image": batch["image"][row : row + 1]}) for row in range(size)]
            for name in rows[0]:
                values.setdefault(name, []).append(np.concatenate([row[name] for row in rows]))
    return graph, calibrate(graph, batches), values


def judged(size: int, changed: rules.Rules | None) -> tuple[list[str], dict[str, Any]]:
    """What parity says of a cache that a TensorRT with these rules would write for the demo, and what it notes."""
    graph, calibration, values = calibrated(size)
    ours = parity.ours_for(graph, calibration.stats, "entropy")
    sources = {name: graph.calibrated.carried.get(name, name) for name in ours.scales}
    found = {source: rules.scale(values[source], changed) for source in set(sources.values()) & set(values)}
    scales = {name: found.get(source, ours.scales[name]) for name, source in sources.items()}
    theirs = CalibrationCache("8600", "EntropyCalibration2", scales)
    limits, notes = parity.limits_of(graph, calibration.stats), {}
    return parity.differences(ours, theirs, "entropy", limits, frozenset({"image"}), notes.__setitem__), notes


@pytest.mark.parametrize("size", [4, 16])
def test_parity_agrees_with_the_rules_as_believed(size: int) -> None:
    assert judged(size, None)[0] == []


@pytest.mark.parametrize(
    ("name", "size"),
    one_of_each(
        [
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
        ]
    ),
)
def test_parity_fails_for_a_broken_rule(name: str, size: int) -> None:
    assert judged(size, RULES[name])[0]


@pytest.mark.parametrize("name", ["threshold=edge of the bin", "threshold=edge of the next bin"])
def test_half_a_bin_shows_in_every_tensor_and_not_in_the_inputs_alone(name: str) -> None:
    found, notes = judged(16, RULES[name])
    assert notes["bins"]["same"] <= 2  # two constants, which are ours in both caches here
    assert any("keep the same bin" in line for line in found)


def louder(stats: ActivationStats) -> ActivationStats:
    """The statistics of a machine whose every layer but the input computes a tenth more."""
    tensors = {
        name: tensor
        if name == "image"
        else replace(
            tensor,
            sample_amax=tensor.sample_amax * np.float32(1.1),
            batch_grid=Histogram(
                tensor.batch_grid.counts, tensor.batch_grid.limit * 1.1, tensor.batch_grid.amax * np.float32(1.1)
            ),
        )
        for name, tensor in stats.tensors.items()
        if tensor.batch_grid is not None
    }
    return replace(stats, tensors=tensors)


def test_ranges_of_the_gpu_tell_other_activations_from_another_rule() -> None:
    """TensorRT follows our rules exactly, on a GPU whose activations are not the CPU's."""
    graph, calibration, _ = calibrated(16)
    cpu, gpu = calibration.stats, louder(calibration.stats)
    theirs = parity.ours_for(graph, gpu, "entropy")
    found = {
        where: parity.differences(
            parity.ours_for(graph, stats, "entropy"),
            theirs,
            "entropy",
            parity.limits_of(graph, stats),
            parity.inputs_of(graph),
        )
        for where, stats in (("cpu", cpu), ("gpu", gpu))
    }
    assert found["cpu"]
    assert found["gpu"] == []


def small(**scales: float) -> CalibrationCache:
    return CalibrationCache("8600", "MinMaxCalibration", {name: np.float32(value) for name, value in scales.items()})


@pytest.mark.parametrize(
    ("kind", "theirs", "words"),
    [
        ("minmax", small(x=1.0, a=2.0, b=3.01), "1 of 3 tensors are off by more than 0.001"),
        ("minmax", small(x=np.nextafter(np.float32(1), np.float32(2)), a=2.0, b=3.0), "3f800001, and 3f800000 with us"),
        ("minmax", small(x=1.0, a=2.0, b=3.0, c=1.0), "1 tensors that TensorRT calibrates are not in our cache"),
        ("minmax", small(a=2.0, b=3.0), "no network input"),
        ("minmax", small(), "holds no tensor"),
        ("minmax", small(x=1.0, a=np.inf, b=3.0), "1 of 3 tensors are off"),
        ("legacy", small(x=1.0, a=2.1, b=3.2), "2 of 3 tensors are off by more than 0.02"),
    ],
)
def test_parity_of_other_calibrators_can_fail(kind: str, theirs: CalibrationCache, words: str) -> None:
    ours = small(x=1.0, a=2.0, b=3.0)
    assert words in "; ".join(parity.differences(ours, theirs, kind, {}, frozenset({"x"})))
    assert parity.differences(ours, ours, kind, {}, frozenset({"x"})) == []


def test_tensors_that_the_parser_makes_are_no_lack_of_ours() -> None:
    scales = {"x": np.float32(1), "(Unnamed Layer* 3) [Shuffle]_output": np.float32(1)}
    theirs = CalibrationCache("8600", "MinMaxCalibration", scales)
    assert parity.differences(small(x=1.0), theirs, "minmax", {}, frozenset({"x"})) == []


# --- layers with weights on the grid


@pytest.mark.parametrize("name", layers.LAYERS)
def test_every_way_to_compute_a_layer_is_told_from_all_others(name: str) -> None:
    layer = layers.LAYERS[name]
    ways = layers.answers(layer, layers.data_of(layer), layers.weights_on_the_grid(layer))
    for way, answer in ways.items():
        assert layers.explained_by(answer, ways) == [way]
        in_int8 = layers.quantized(answer, layers.output_step(ways))
        assert layers.explained_by(in_int8, ways) == [f"{way}, output in INT8"]
    assert layers.explained_by(answer * np.float32(1.01), ways) == []


@pytest.mark.parametrize("name", layers.LAYERS)
def test_weights_on_the_grid_are_the_same_after_the_believed_way(name: str) -> None:
    layer = layers.LAYERS[name]
    weights = layers.weights_on_the_grid(layer)
    way = layer.believed or "per output channel"
    np.testing.assert_array_equal(layers.quantizations(layer, weights)[way], weights)


@pytest.mark.parametrize(
    ("name", "found", "words"),
    [
        ("Conv", [], "no way of quantizing would give this output"),
        ("Conv", ["per tensor", "per input channel"], "would give this output"),
        ("Conv", ["not in INT8"], "did not compute this Conv in INT8"),
        ("Conv", ["per tensor, output in INT8"], "per tensor, output in INT8, and not per output channel"),
        ("ConvTranspose", ["per output channel"], "and not per input channel"),
        ("Gemm", ["per output channel, 128 steps"], "the largest weight is 128 steps"),
    ],
)
def test_a_layer_that_is_computed_otherwise_fails(name: str, found: list[str], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        layers.check(layers.LAYERS[name], found)


@pytest.mark.parametrize(
    ("name", "way"),
    [("Conv", "per output channel"), ("ConvTranspose", "per input channel, output in INT8"), ("Gemm", "per tensor")],
)
def test_a_layer_that_is_computed_as_believed_passes(name: str, way: str) -> None:
    layers.check(layers.LAYERS[name], [way])


# --- what is kept of a build


def test_what_is_kept_of_a_log_is_not_where_memory_went() -> None:
    memory = [f"INFO: [MemUsageChange] Init CUDA: CPU +{number}" for number in range(40)]
    wanted = ["WARNING: Missing scale and zero-point for tensor y", "INFO: Calibration Profile is not defined."]
    assert builds.telling([wanted[0], *memory, wanted[1], *memory]) == wanted


@pytest.mark.parametrize("works", [0, None, "never"])
def test_a_build_that_fails_at_the_fastest_level_is_tried_at_tensorrts_own(
    works: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def build(model: bytes, calibrator: Any, *, level: int | None, **_: Any) -> None:
        tried.append(level)
        calibrator.read_calibration_cache()
        if level != works:
            raise builds.BuildFailed("no kernel")
        calibrator.write_calibration_cache(b"TRT-8600-EntropyCalibration2\n")

    monkeypatch.setenv("TRTCAL_MEMORY", "host")
    monkeypatch.setattr(builds, "build", build)
    monkeypatch.setattr(builds, "_log", list)
    monkeypatch.setattr(builds.versions, "base_class", lambda algorithm: object)
    observed, kept = builds.observe([]), {}
    observed.keep(kept.__setitem__)
    assert tried == ([0] if works == 0 else [0, None])
    assert kept["built"] is (works != "never")
    assert kept["cache"] == (None if works == "never" else "TRT-8600-EntropyCalibration2\n")
    assert kept["calls"].count("read_calibration_cache") == 1
