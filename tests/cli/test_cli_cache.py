from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import batched, conv_model, images, make_model, save
from qdq_models import PAIRS, STEP, WEIGHTS, paired

from trtcal.cache.cache import CalibrationCache
from trtcal.cache.formats import FORMATS, load
from trtcal.calibration.calibrate import calibrate
from trtcal.cli import main
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq

Run = Callable[..., tuple[int, str, str]]
WRITABLE = [name for name, row in FORMATS.items() if row.format is not None]
HEADER = "TRT-8601-EntropyCalibration2"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``trtcal cache ...`` in tmp_path -> exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trtcal", "cache", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """m.onnx, its cache c.cache, and q.onnx with Q/DQ."""
    model = conv_model()
    cache = calibrate(save(model, tmp_path / "m.onnx"), batched(images(4), 4)).cache
    cache.save(tmp_path / "c.cache")
    save(insert_qdq(model, cache.scales).model, tmp_path / "q.onnx")
    return tmp_path


def write(path: str, *lines: str, header: str = HEADER) -> None:
    Path(path).write_text("".join(f"{line}\n" for line in (header, *lines)))


# --- show ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", WRITABLE)
def test_show_reads_every_format(run: Run, folder: Path, format: str) -> None:
    assert run("convert", "c.cache", "-o", "x", "--to", format)[0] == 0
    code, out, _ = run("show", "x")
    assert code == 0
    assert out.startswith(f"{HEADER if format == 'tensorrt' else format}, 9 tensors\n")
    report = json.loads(run("show", "x", "--json")[1])
    assert report["format"] == format
    assert list(report["tensors"]) == list(CalibrationCache.load("c.cache").scales)


def test_show_reads_a_qdq_model(run: Run, folder: Path) -> None:
    assert run("show", "q.onnx")[1].startswith("qdq, 2 tensors\n")


# --- check --------------------------------------------------------------------------------------------


def test_a_cache_that_fits_its_model_and_tensorrt_exits_with_0(run: Run, folder: Path) -> None:
    code, out, err = run("check", "c.cache", "--model", "m.onnx", "--trt-version", "8.5.1")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{HEADER}, 9 tensors", "0 errors, 0 warnings, 0 notes"]


def test_errors_exit_with_1_and_warnings_alone_with_0(run: Run, folder: Path) -> None:
    write("w.cache", "x: 3c010204", "y: 0", "z: 0")
    write("e.cache", "x: 3c010204", "y: 7f800000")
    code, out, _ = run("check", "w.cache")
    assert code == 0
    assert "warning  y, z: its scale is 0" in out
    code, out, _ = run("check", "e.cache")
    assert code == 1
    assert "error    y: its scale is inf" in out
    assert out.endswith("1 error, 0 warnings, 0 notes\n")


def test_a_cache_without_tensors_is_an_error(run: Run, folder: Path) -> None:
    write("none.cache")
    code, out, _ = run("check", "none.cache")
    assert code == 1
    assert "error    holds no tensors, so nothing would be INT8; calibrate again\n" in out


def test_many_tensors_of_a_kind_take_one_line_and_json_lists_them_all(run: Run, folder: Path) -> None:
    write("c.cache", *(f"t{i}: {0 if i else '3c010204'}" for i in range(9)))
    lines = run("check", "c.cache")[1].splitlines()
    assert len(lines) == 3
    assert "t1, t2, t3, t4, t5 and 3 more (--json lists all): its scale is 0" in lines[1]
    code, out, _ = run("check", "c.cache", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["counts"] == {"error": 0, "warning": 8, "note": 0}
    assert [finding["tensor"] for finding in report["findings"]] == [f"t{i}" for i in range(1, 9)]


def test_a_stale_header_is_found_and_retargeting_mends_it(run: Run, folder: Path) -> None:
    code, out, _ = run("check", "c.cache", "--trt-version", "10.3.0")
    assert code == 1
    assert "trtcal cache retarget --trt-version 10.3.0" in out
    before = CalibrationCache.load("c.cache")
    code, _, err = run("retarget", "c.cache", "--trt-version", "10.3.0", "-o", "c.cache")
    assert code == 0
    assert f"c.cache: 9 tensors, were {HEADER}; TRT-100300-EntropyCalibration2" in err
    assert run("check", "c.cache", "--trt-version", "10.3.0")[0] == 0
    assert CalibrationCache.load("c.cache").scales == before.scales


# --- diff ---------------------------------------------------------------------------------------------


def test_diff_lists_changes_by_size_and_what_is_missing(run: Run, folder: Path) -> None:
    write("a.cache", "same: 3c010204", "twice: 3c010204", "gone: 3c010204")
    write("b.cache", "twice: 3c810204", "same: 3c010204", "new: 3c010204")
    code, out, _ = run("diff", "a.cache", "b.cache")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "1 of 2 common tensors differ"
    assert lines[2].split() == ["twice", "1", "2", "2"]
    assert lines[3:] == ["only in a.cache: gone", "only in b.cache: new"]


def test_diff_as_json_has_inf_as_text(run: Run, folder: Path) -> None:
    write("a.cache", "x: 0", "y: 7f800000")
    write("b.cache", "x: 3c010204")
    assert json.loads(run("diff", "a.cache", "b.cache", "--json")[1]) == [
        {"tensor": "x", "first": 0.0, "second": pytest.approx(1 / 127), "ratio": "inf"},
        {"tensor": "y", "first": "inf", "second": None, "ratio": None},
    ]


def test_diff_compares_formats_and_draws(run: Run, folder: Path) -> None:
    assert run("convert", "c.cache", "-o", "x.json", "--to", "tao")[0] == 0
    code, out, err = run("diff", "c.cache", "x.json", "--plot", "d.html")
    assert (code, out) == (0, "0 of 9 common tensors differ\n")
    assert "d.html: 9 tensors" in err
    assert run("diff", "c.cache", "x.json", "--plot", "d.html")[0] == 0  # its own page may be drawn again
    assert "image" in (folder / "d.html").read_text()


# --- merge, rename ------------------------------------------------------------------------------------


def test_merge_lets_the_last_file_count(run: Run, folder: Path) -> None:
    write("a.cache", "x: 3c010204", "y: 3c010204")
    write("b.cache", "y: 3c810204", "z: 0", header="TRT-100300-MinMaxCalibration")
    code, _, err = run("merge", "a.cache", "b.cache", "-o", "m.cache")
    assert code == 0
    assert Path("m.cache").read_bytes() == f"{HEADER}\nx: 3c010204\ny: 3c810204\nz: 0\n".encode()
    assert "m.cache: 3 tensors, out of 2 files, 1 of them given more than once" in err


def test_rename_gives_new_names(run: Run, folder: Path) -> None:
    write("a.cache", "x: 3c010204", "y: 0")
    assert run("rename", "a.cache", "--map", "x=p=q", "--map", "y=r:0", "-o", "b.cache")[0] == 0
    assert Path("b.cache").read_bytes() == f"{HEADER}\np=q: 3c010204\nr:0: 0\n".encode()
    assert run("rename", "b.cache", "--map", "r:0=y", "-o", "b.cache")[0] == 0
    assert Path("b.cache").read_bytes() == f"{HEADER}\np=q: 3c010204\ny: 0\n".encode()


# --- convert ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", WRITABLE)
def test_convert_there_and_back_is_the_same_cache(run: Run, folder: Path, format: str) -> None:
    assert run("convert", "c.cache", "-o", "x", "--to", format)[0] == 0
    assert run("convert", "x", "-o", "back.cache", "--from", format)[0] == 0
    assert Path("back.cache").read_bytes() == Path("c.cache").read_bytes()


def test_convert_takes_formats_from_content_and_names(run: Run, folder: Path) -> None:
    assert "from tensorrt to ort-flatbuffers\n" in run("convert", "c.cache", "-o", "x.flatbuffers")[2]
    assert "from ort-flatbuffers to int8api\n" in run("convert", "x.flatbuffers", "-o", "x.txt")[2]
    assert f"from int8api to tensorrt, {HEADER}\n" in run("convert", "x.txt", "-o", "cal.bin")[2]


def test_convert_takes_ranges_and_the_clean_model_out_of_a_qdq_model(run: Run, folder: Path) -> None:
    code, _, err = run("convert", "q.onnx", "-o", "q.cache", "--clean-model", "f.onnx")
    assert code == 0
    assert "f.onnx: the model of q.onnx without Q/DQ" in err
    assert f"from qdq to tensorrt, {HEADER} by default, since the model names no calibrator\n" in err
    nodes = [node.op_type for node in onnx.load("f.onnx").graph.node]
    assert nodes == [node.op_type for node in conv_model().graph.node]
    ranges, given = CalibrationCache.load("q.cache").scales, CalibrationCache.load("c.cache").scales
    assert {"image", "flat"} <= ranges.keys()
    assert all(ranges[name] == given[name] for name in ranges)
    assert run("check", "q.cache", "--model", "f.onnx")[0] == 0


@pytest.mark.parametrize("spelling", PAIRS)
def test_convert_takes_every_spelling_of_a_pair_apart(run: Run, tmp_path: Path, spelling: str) -> None:
    save(paired(spelling), tmp_path / "q.onnx")
    code, _, err = run("convert", "q.onnx", "-o", "q.cache", "--clean-model", "f.onnx")
    assert code == 0, err
    assert dict(CalibrationCache.load("q.cache").scales) == {"x": STEP}
    with OrtRunner("f.onnx") as runner:
        x = np.ones((1, 3, 2, 4), np.float32)
        np.testing.assert_array_equal(runner({"x": x})["y"][0, :, 0, 0], WEIGHTS.sum(axis=(1, 2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"s": 2 * STEP}, "dequantizes with another scale"), ({"s": -STEP, "s2": -STEP}, "the scale -0.125; expected a")],
)
def test_convert_refuses_pairs_that_do_more_than_round(
    run: Run, tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        onnx.helper.make_node("DequantizeLinear", ["xq", "s2", "z"], ["xd"]),
        onnx.helper.make_node("Neg", ["xd"], ["y"]),
    ]
    constants = {"s": STEP, "s2": STEP, "z": np.int8(0)} | changes
    save(make_model(nodes, {"x": [1, 2]}, ["y"], constants), tmp_path / "q.onnx")
    for arguments in (["-o", "q.cache"], ["-o", "q.cache", "--clean-model", "f.onnx"]):
        code, _, err = run("convert", "q.onnx", *arguments)
        assert code == 2
        assert message in err
    assert not {"q.cache", "f.onnx"} & {path.name for path in tmp_path.iterdir()}


def test_convert_says_what_a_file_of_onnxruntime_may_have_lost(run: Run, folder: Path) -> None:
    Path("calibration.txt").write_text("x 2.008338451385498\n")
    code, _, err = run("convert", "calibration.txt", "-o", "x.cache", "--from", "ort-text")
    assert code == 0
    assert "calibration.json beside this file has both ends" in err
    assert load("x.cache")[0].amax("x") == np.float32(2.008338451385498)


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "noise"], "noise: not recognised as any of tensorrt, "),
        (["check", "gone.cache"], "gone.cache: cannot be read"),
        (["check", "c.cache", "--model", "gone.onnx"], "gone.onnx: cannot be read"),
        (["check", "c.cache", "--model", "q.onnx"], "q.onnx: already quantized"),
        (["check", "c.cache", "--trt-version", "8"], "expected a TensorRT version"),
        (["check", "x.json", "--trt-version", "8.6.1"], "x.json: a file in the format tao has no header"),
        (["diff", "c.cache", "gone.cache"], "gone.cache: cannot be read"),
        (["diff", "c.cache", "c.cache", "--plot", "no/d.html"], "no/d.html: cannot be written"),
        (["merge", "c.cache", "noise", "-o", "o.cache"], "noise: not recognised"),
        (["rename", "c.cache", "--map", "image", "-o", "o.cache"], "--map image: expected OLD=NEW"),
        (["rename", "c.cache", "--map", "imag=x", "-o", "o.cache"], "did you mean 'image'?"),
        (["rename", "c.cache", "--map", "image=conv", "-o", "o.cache"], "'conv' would be the name of two tensors"),
        (["retarget", "c.cache", "-o", "o.cache"], "give --trt-version or --algorithm"),
        (["retarget", "c.cache", "--algorithm", "x", "-o", "o.cache"], "algorithm must be one of"),
        (["convert", "c.cache", "-o", "o.json"], "its name does not say in which format"),
        (["convert", "c.cache", "-o", "o.onnx"], "trtcal qdq"),
        (["convert", "c.cache", "-o", "o", "--to", "x"], "unknown format 'x'"),
        (["convert", "c.cache", "-o", "o.cache", "--from", "x"], "unknown format 'x'"),
        (["convert", "c.cache", "-o", "o.cache", "--from", "tao"], "c.cache:1: expected JSON"),
        (["convert", "m.onnx", "-o", "o.cache"], "m.onnx: the model has no QuantizeLinear"),
        (["convert", "c.cache", "-o", "o.cache", "--clean-model", "f.onnx"], "c.cache is tensorrt"),
        (["convert", "q.onnx", "-o", "q.onnx", "--to", "tensorrt"], "q.onnx: is an input of this command"),
        (["convert", "q.onnx", "-o", "o.cache", "--clean-model", "q.onnx"], "q.onnx: is an input of this command"),
        (["convert", "q.onnx", "-o", "o.cache", "--clean-model", "c.cache"], "c.cache: exists and is no ONNX model"),
        (["convert", "c.cache", "-o", "m.onnx", "--to", "int8api"], "m.onnx: exists and is no calibration cache, nor"),
        (["convert", "c.cache", "-o", "c.cache", "--to", "tao"], "c.cache: is an input of this command"),
        (["convert", "c.cache", "-o", "no/o.cache"], "no/o.cache: cannot be written"),
        (["rename", "c.cache", "--map", "image=x", "-o", "noise"], "noise: exists and is no calibration cache"),
        (["retarget", "c.cache", "--trt-version", "10.3.0", "-o", "m.onnx"], "m.onnx: exists and is no calibration"),
        (["retarget", "x.json", "--trt-version", "10.3.0", "-o", "x.json"], "x.json: exists and is no calibration"),
        (["merge", "inf.cache", "c.cache", "-o", "c.cache"], "c.cache: is an input of this command"),
        (["diff", "c.cache", "inf.cache", "--plot", "c.cache"], "c.cache: is an input of this command"),
        (["diff", "c.cache", "inf.cache", "--plot", "m.onnx"], "m.onnx: exists and is no page of trtcal's"),
        (["convert", "q.onnx", "-o", "o", "--to", "tao", "--clean-model", "o"], "both the ranges and the clean model"),
        (["convert", "q.onnx", "-o", "f.data", "--to", "tao", "--clean-model", "f"], "both the ranges and the clean"),
        (["convert", "c.cache", "-o", "c.cache.json", "--to", "tao"], "c.cache.json: is an input of this command"),
        (["convert", "inf.cache", "-o", "o.json", "--to", "tao"], "tensor 'x' has the scale inf"),
    ],
)
def test_mistakes_exit_with_2_and_one_clear_line_and_change_nothing(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    (folder / "noise").write_bytes(b"hello")
    (folder / "x.json").write_text('{"tensor_scales": {"x": 1}}')
    (folder / "c.cache.json").write_text("{}")
    (folder / "inf.cache").write_text(f"{HEADER}\nx: 7f800000\n")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("trtcal: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("command", ["show", "check", "diff", "merge", "rename", "retarget", "convert"])
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_help_names_every_format_that_can_be_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help is written without importing the library; here they are held together."""
    monkeypatch.setenv("COLUMNS", "300")
    text = run("convert", "--help")[1]
    assert all(name in text for name in WRITABLE)


def test_no_warning_is_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    from trtcal.cli import _Once

    handler = logging.StreamHandler()
    handler.addFilter(_Once())
    for level, text in ((30, "a"), (30, "a"), (40, "a"), (20, "b"), (20, "b"), (30, "c")):
        handler.handle(logging.LogRecord("trtcal", level, "", 0, "%s", (text,), None))
    assert capsys.readouterr().err == "a\nb\nb\nc\n"
