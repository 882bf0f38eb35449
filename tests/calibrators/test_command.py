from __future__ import annotations

from pathlib import Path
from typing import Any

import fakecuda
import numpy as np
import pytest
from fakecuda.models import SHAPE, onnx_model
from PIL import Image

from calibrators.command import run, snippets
from calibrators.options import parser

pytestmark = pytest.mark.slow(reason="a process per test")

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "build_engine.py")
REQUIRED = ["--onnx", "m.onnx", "--engine", "m.engine"]
DATA = ["--precision", "int8", "--calib_input", "x.npy", "--calib_batch_size", "4"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(onnx_model())
    (tmp_path / "static.onnx").write_bytes(onnx_model(2))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(10, *SHAPE)).astype(np.float32))
    return tmp_path


def build(folder: Path, *options: str, **settings: Any) -> Any:
    return fakecuda.start(SCRIPT, *REQUIRED, *options, cwd=folder, **settings)


def options(*texts: str) -> Any:
    return parser().parse_args([*REQUIRED, *texts])


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_nvidias_flags_build_an_int8_engine_from_a_folder_of_pictures(folder: Path, trt: str) -> None:
    (folder / "images").mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(folder / "images" / f"{number}.png")
    flags = "--precision int8 --calib_input images --calib_cache c.cache --calib_num_images 5 --calib_batch_size 2"
    done = build(folder, *flags.split(), "--calib_preprocessor", "0-1", "-v", trt=trt)
    assert done.returncode == 0, done.stderr
    assert (folder / "m.engine").read_bytes().startswith(b"TRTFAKE-PLAN")
    assert (folder / "c.cache").exists()
    assert "calibration batch size: 2 (image (2, 3, 8, 8))" in done.stdout
    assert "calibrated on 3 batches of 2, 5 samples" in done.stderr
    assert "int8-calib-file=c.cache" in done.stdout
    assert "trt_int8_use_native_calibration_table" in done.stdout


@pytest.mark.parametrize(
    ("method", "header"),
    [
        ("entropy", "EntropyCalibration2"),
        ("minmax", "MinMaxCalibration"),
        ("legacy", "LegacyCalibration"),
        ("percentile:99", "EntropyCalibration2"),
        ("mse", "EntropyCalibration2"),
    ],
)
def test_every_method_builds(folder: Path, method: str, header: str) -> None:
    done = build(folder, *DATA, "--method", method)
    assert done.returncode == 0, done.stderr
    assert (folder / "calibration.cache").read_text().splitlines()[0].endswith(f"-{header}")


def test_a_second_run_reuses_the_cache_and_another_setting_says_what_differs(folder: Path) -> None:
    build(folder, *DATA)
    assert "used; same model, data and settings" in build(folder, *DATA).stderr
    assert "order: given -> shuffled" in build(folder, *DATA, "--order", "shuffled").stderr
    build(folder, *DATA)
    assert "batch size: 4 -> 2" in build(folder, *DATA, "--calib-batch-size", "2").stderr
    assert "calibrated on" in build(folder, *DATA, "--calib-batch-size", "2", "--force").stderr


def test_a_cache_is_enough_where_there_are_no_data(folder: Path) -> None:
    (folder / "old.cache").write_bytes(b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\nconv: 3c010a14\n")
    done = build(folder, "--int8", "--calibration-cache=old.cache", "--optShapes=image:4x3x8x8")
    assert done.returncode == 0, done.stderr
    assert "TENSORS WITHOUT A RANGE" in done.stdout
    assert "y: gemm" in done.stdout


def test_a_cache_alone_builds_a_dynamic_model_where_a_batch_size_is_given(folder: Path) -> None:
    (folder / "p.cache").write_bytes(b"TRT-8601-EntropyCalibration2\nimage: 3c010a14\n")
    flags = "--int8", "--calib", "p.cache", "--policy", "read"
    refused = build(folder, *flags)
    assert refused.returncode == 2
    assert "--optShapes image:8x3x8x8" in refused.stderr.splitlines()[-1]
    done = build(folder, *flags, "--calib_batch_size", "4")
    assert done.returncode == 0, done.stderr
    assert "calibration batch size" not in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--engine", "m.onnx"],
        ["--engine", "x.npy"],
        ["--engine", "static.onnx"],
        ["--calib_cache", "m.onnx", "--force"],
        ["--calib_cache", "x.npy", "--force"],
        ["--calib_cache", "m.engine"],
        ["--timing-cache", "m.onnx"],
        ["--engine", "nowhere/m.engine"],
        ["--calib_cache", "nowhere/c"],
        ["--method", "percentile", "--engine", "nowhere/m.engine"],
    ],
)
def test_outputs_over_inputs_and_into_no_folder_are_refused_before_the_work(folder: Path, flags: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = build(folder, *DATA, *flags)
    assert done.returncode == 2
    assert "trtfake" not in done.stderr
    assert "collecting" not in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_verbose_is_about_our_own_loggers_only(folder: Path) -> None:
    done = build(folder, *DATA, "-v")
    assert done.returncode == 0, done.stderr
    assert "PIL" not in done.stderr
    program = (
        "import logging; from calibrators.command import main; main(['-o', 'm', '-e', 'e', '-v']);"
        "print([logging.getLogger(n).getEffectiveLevel() for n in ('', 'PIL', 'trtcal.x', 'calibrators.tensorrt')])"
    )
    assert fakecuda.start(program, cwd=folder).stdout.strip() == "[20, 20, 10, 10]"


def test_a_failing_loader_exits_2_with_batch_and_reason_and_writes_nothing(folder: Path) -> None:
    (folder / "loader.py").write_text(
        "import numpy as np\n"
        "def load_data():\n"
        "    yield from ({'image': np.ones((4, 3, 8, 8), np.float32)} for _ in range(2))\n"
        "    raise OSError('disk gone')\n"
    )
    done = build(folder, "--int8", "--calib_input", "loader.py", "--calib_batch_size", "4")
    assert done.returncode == 2
    assert "disk gone" in done.stderr.splitlines()[-1]
    assert not (folder / "m.engine").exists()
    assert not (folder / "calibration.cache").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8"], "INT8 needs data or ranges: --calib_input PATH"),
        (["--calib_input", "x.npy"], "--calib_input goes with --precision int8, not with fp16"),
        ([*DATA, "--method", "median"], "method must be one of entropy, minmax, percentile:Q, "),
        ([*DATA, "--method", "entropy:3"], "method entropy takes no parameter"),
        (["--int8", "--calib_input", "absent"], "absent: no such file or folder"),
        ([*DATA, "--minShapes=x=3"], "expected INPUT:SIZES"),
        ([*DATA, "--policy", "read"], "no such cache"),
        ([*DATA, "--method", "minmax", "--percentile", "99"], "goes with method percentile alone"),
        ([*DATA, "--preset", "0-1", "--preprocess", "layout=HWC"], "--preprocess layout=HWC: expected KNOB=VALUE"),
        ([*DATA, "--preprocess", "scale=2"], "--scale changes a preset; name one with --preset"),
        ([*DATA, "--layout", "HWC"], "--layout changes a preset"),
    ],
)
def test_what_cannot_be_done_exits_2_with_one_line(folder: Path, flags: list[str], message: str) -> None:
    done = build(folder, *flags)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (folder / "m.engine").exists()


def test_a_static_batch_is_refused_or_rewritten(folder: Path) -> None:
    refused = build(folder, *DATA, "--onnx", "static.onnx")
    assert refused.returncode == 2
    assert "--rewrite-batch" in refused.stderr.splitlines()[-1]
    done = build(folder, *DATA, "--onnx", "static.onnx", "--rewrite-batch")
    assert done.returncode == 0, done.stderr
    assert "calibration batch size: 4" in done.stdout


def test_without_tensorrt_it_exits_2_and_says_what_to_install(folder: Path) -> None:
    done = build(folder, *DATA, trt=None)
    assert done.returncode == 2
    assert "install tensorrt>=8.5,<11" in done.stderr.splitlines()[-1]


def test_fp16_needs_no_data(folder: Path) -> None:
    done = build(folder, "--optShapes", "image:4x3x8x8")
    assert done.returncode == 0, done.stderr
    assert "m.engine" in done.stdout


def test_the_output_goes_where_it_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trtcal build` hands in a function of its own; nothing is printed past it."""
    from calibrators import command
    from calibrators.coverage import Coverage
    from calibrators.engine import BuiltEngine

    built = BuiltEngine(b"plan", None, {}, {}, None, Coverage())
    monkeypatch.setattr(command, "build_engine", lambda *_, **__: built)
    monkeypatch.setattr(command, "_inspected", lambda *_: ["layers: 3 fp16"])
    lines: list[str] = []
    run(options(), lines.append)
    assert lines == ["m.engine: 4 bytes, fp16", "layers: 3 fp16"]


def test_a_reader_that_has_seen_enough_ends_the_report_in_silence(folder: Path) -> None:
    done = fakecuda.start(
        """
        import os, sys
        from calibrators.command import main
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.exit(main(sys.argv[1:]))
        """,
        *REQUIRED,
        "--optShapes",
        "image:4x3x8x8",
        cwd=folder,
    )
    assert done.returncode == 1
    assert "Broken pipe" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (folder / "m.engine").exists()


@pytest.mark.parametrize(("flags", "backend"), [([], "cuda"), (["--memory", "pycuda"], "pycuda")])
def test_memory_is_that_of_every_method(folder: Path, flags: list[str], backend: str) -> None:
    found = fakecuda.run(
        """
        import sys
        from fakecuda.report import report
        from calibrators import command, gpu_stats, memory
        from trtcal.errors import BackendError
        opened = []
        for name, kind in list(memory.BACKENDS.items()):
            memory.BACKENDS[name] = lambda device, name=name, kind=kind: opened.append(name) or kind(device)
        code = command.main(sys.argv[1:], echo=lambda line: None)
        report(code=code, opened=sorted(set(opened)))
        """,
        *REQUIRED,
        *DATA,
        *flags,
        "--method",
        "percentile:99",
        cwd=folder,
    )
    assert found == {"code": 0, "opened": [backend]}


def test_the_snippets_name_the_cache_where_it_lies(tmp_path: Path) -> None:
    text = "\n".join(snippets(Path("m.onnx"), tmp_path / "c.cache"))
    assert f"int8-calib-file={tmp_path / 'c.cache'}" in text
    assert "'c.cache'" in text
    assert repr(str(tmp_path)) in text


def test_names_in_a_report_move_no_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrators import command

    monkeypatch.setattr(command, "build_engine", lambda *arguments, **settings: None)
    monkeypatch.setattr(command, "report", lambda options, built: ["\x1b[2Jtensor\nx"])
    lines: list[str] = []
    run(parser().parse_args(["-o", str(tmp_path / "m.onnx"), "-e", str(tmp_path / "m.engine")]), lines.append)
    assert lines == [r"\x1b[2Jtensor\nx"]


def test_names_in_an_error_move_no_cursor(folder: Path) -> None:
    done = build(folder, *DATA, "--calib_input", "no\x1b[2J.npy")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert r"no\x1b[2J.npy" in done.stderr
