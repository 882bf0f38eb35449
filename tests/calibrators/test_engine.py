from __future__ import annotations

from pathlib import Path
from typing import Any

import fakecuda
import onnx
import pytest
from models import conv_model

VERSIONS = pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)

MODELS = """
import logging
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
logging.getLogger("calibrators").addHandler(Keep()); logging.getLogger("calibrators").setLevel("INFO")
Path("dynamic.onnx").write_bytes(onnx_model())
Path("static.onnx").write_bytes(onnx_model(2))
def entropy(count=2, size=4, **options): return EntropyCalibrator(batches(count, size=size), **options)
def engine(): return Path("m.engine").read_bytes() if Path("m.engine").exists() else None
"""


def drive(folder: Path, program: str, *arguments: str, **settings: Any) -> Any:
    from textwrap import dedent

    return fakecuda.drive(folder, MODELS + dedent(program), *arguments, **settings)


@VERSIONS
def test_the_batch_of_the_data_is_the_one_that_runs_and_it_is_said(tmp_path: Path, trt: str) -> None:
    """TensorRT's own count, from the profile it was given, against what the build reports and logs."""
    found = drive(
        tmp_path,
        """
        results = {}
        for size in (1, 4, 7):
            for order in ("size", "cache"):
                os.environ["TRTFAKE_ORDER"] = order
                lines.clear()
                built = build_engine("dynamic.onnx", "m.engine", calibrator=EntropyCalibrator(batches(3, size=size)))
                results[f"{size} {order}"] = [built.batch_size, built.calibrated["image"], built.plan == engine(),
                                              f"calibration batch size {size}: image ({size}, 3, 8, 8)" in lines,
                                              f"trtfake: calibrated with 3 batches of {size}" in lines]
        report(live=live(), **results)
        """,
        trt=trt,
    )
    assert found.pop("live") == {}
    assert len(found) == 6
    for name, result in found.items():
        size = int(name.split()[0])
        assert result == [size, [size, 3, 8, 8], True, True, True]


def test_the_calibration_profile_covers_every_input(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        names = ("a", "b", "c")
        Path("m.onnx").write_bytes(onnx_model(inputs=names))
        built = build_engine("m.onnx", calibrator=MinMaxCalibrator(batches(2, names=names)))
        report(calibrated=built.calibrated, profile={n: [r.min, r.opt, r.max] for n, r in built.profile.items()},
               scales={n: float(s) * 127 for n, s in built.ranges.scales.items()})
        """,
    )
    for name in "abc":
        assert found["calibrated"][name] == [4, 3, 8, 8]
        assert found["profile"][name] == [[1, 3, 8, 8], [4, 3, 8, 8], [4, 3, 8, 8]]
    assert found["scales"] == pytest.approx({"a": 2, "b": 20, "c": 200})


def test_the_engines_own_shapes_do_not_change_the_calibrated_batch(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        shapes = {"image": [(1, *SHAPE), (2, *SHAPE), (16, *SHAPE)]}
        built = build_engine("dynamic.onnx", calibrator=EntropyCalibrator(batches(2, size=4)), shapes=shapes)
        ran = "trtfake: calibrated with 2 batches of 4" in lines
        report(batch=built.batch_size, opt=built.profile["image"].opt, ran=ran)
        """,
    )
    assert found == {"batch": 4, "opt": [2, 3, 8, 8], "ran": True}


@VERSIONS
def test_a_static_batch_that_differs_is_an_error_or_rewritten_on_request(tmp_path: Path, trt: str) -> None:
    found = drive(
        tmp_path,
        """
        refused = failure(lambda: build_engine("static.onnx", "m.engine", calibrator=entropy()))
        files = engine()
        built = build_engine("static.onnx", "m.engine", calibrator=entropy(), rewrite_batch=True)
        ran = "trtfake: calibrated with 2 batches of 4" in lines
        same = build_engine("static.onnx", calibrator=entropy(size=2), rewrite_batch=True)
        report(refused=refused, files=files, batch=built.batch_size, ran=ran, keeps=built.profile["image"].max,
               untouched=[same.batch_size, same.profile], left=sorted(os.listdir(".")), live=live())
        """,
        trt=trt,
    )
    assert found["refused"]["type"] == "DataError"
    assert (
        "the model fixes batch size 2, the data come in batches of 4; feed batches of 2" in found["refused"]["message"]
    )
    assert found["files"] is None
    assert found["batch"] == 4
    assert found["ran"]
    assert found["keeps"] == [2, 3, 8, 8]
    assert found["untouched"] == [2, {}]
    assert found["left"] == ["dynamic.onnx", "m.engine", "static.onnx"]
    assert found["live"] == {}


def test_a_static_batch_is_rewritten_with_the_shapes_of_the_model_s_own_folder(tmp_path: Path) -> None:
    model = conv_model(batch=2)
    (tmp_path / "models").mkdir()
    onnx.save(model, tmp_path / "models" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    found = drive(
        tmp_path,
        """
        built = build_engine("models/m.onnx", calibrator=entropy(), rewrite_batch=True)
        report(batch=built.batch_size)
        """,
    )
    assert found == {"batch": 4}


@VERSIONS
def test_a_model_may_come_from_anywhere(tmp_path: Path, trt: str) -> None:
    """Also where its batch size has to be rewritten."""
    found = drive(
        tmp_path,
        """
        import onnx
        from trtcal.model.open import open_model
        plans = {}
        for name, options in (("dynamic.onnx", {}), ("static.onnx", {"rewrite_batch": True})):
            content = Path(name).read_bytes()
            sources = {"path": name, "bytes": content, "proto": onnx.load_from_string(content),
                       "model": open_model(name), "model of bytes": open_model(content)}
            for kind, source in sources.items():
                built = build_engine(source, calibrator=entropy(size=4), **options)
                plans[f"{name} {kind}"] = [built.batch_size, built.ranges.format().hex()]
        report(**plans)
        """,
        trt=trt,
    )
    assert len(found) == 10
    for name in ("dynamic.onnx", "static.onnx"):
        expected = found[f"{name} path"]
        assert expected[0] == 4
        assert all(found[f"{name} {kind}"] == expected for kind in ("bytes", "proto", "model", "model of bytes"))


def test_a_later_batch_of_another_size_fails_the_build(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        data = [*batches(1, size=4), *batches(1, size=3)]
        calibrator = EntropyCalibrator(data, cache="c")
        failed = failure(lambda: build_engine("dynamic.onnx", "m.engine", calibrator=calibrator))
        report(failed=failed, engine=engine(), cache=Path("c").exists(), live=live())
        """,
    )
    assert found["failed"]["type"] == "DataError"
    assert (
        "batch 2: input 'image': the shape is (3, 3, 8, 8), the network reads (4, 3, 8, 8)"
        in found["failed"]["message"]
    )
    assert found["engine"] is None
    assert found["cache"] is False
    assert found["live"] == {}


@VERSIONS
def test_a_failure_of_the_feed_is_raised_and_no_engine_written(tmp_path: Path, trt: str) -> None:
    found = drive(
        tmp_path,
        """
        Path("m.engine").write_bytes(b"the old one")
        results = {}
        for error in (OSError("disk gone"), KeyboardInterrupt()):
            data = failing(5, error, after=2)
            calibrator = EntropyCalibrator(data, cache="model.cache")
            failed = failure(lambda: build_engine("dynamic.onnx", "m.engine", calibrator=calibrator))
            results[type(error).__name__] = failed
        report(engine=engine(), cache=Path("model.cache").exists(), live=live(), **results)
        """,
        trt=trt,
    )
    assert found["OSError"]["message"] == "calibration, batch 3: OSError: disk gone"
    assert found["KeyboardInterrupt"]["type"] == "KeyboardInterrupt"
    assert found["engine"] == "the old one"
    assert found["cache"] is False
    assert found["live"] == {}


def test_an_error_in_the_first_batch_is_raised_too(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        def build(data):
            return failure(lambda: build_engine("dynamic.onnx", "m.engine", calibrator=EntropyCalibrator(data)))
        report(first=build(failing(3, OSError("disk gone"), after=0)), none=build([]), engine=engine(), live=live())
        """,
    )
    assert found["first"]["message"] == "calibration, batch 1: OSError: disk gone"
    assert "no batch at all" in found["none"]["message"]
    assert found["engine"] is None
    assert found["live"] == {}


@pytest.mark.parametrize("what", ["builder", "network", "config", "parser", "build"])
@VERSIONS
def test_what_tensorrt_does_not_make_is_an_error_with_its_own_words(tmp_path: Path, trt: str, what: str) -> None:
    found = drive(
        tmp_path,
        """
        failed = failure(lambda: build_engine("dynamic.onnx", "m.engine", calibrator=EntropyCalibrator(batches(2))))
        report(failed=failed, engine=engine(), live=live())
        """,
        trt=trt,
        TRTFAKE_FAIL=what,
    )
    assert found["failed"]["type"] == "BackendError"
    assert ("injected build failure" if what == "build" else "TensorRT cannot make a") in found["failed"]["message"]
    assert found["engine"] is None
    assert found["live"] == {}


def test_a_model_that_is_none_is_an_error(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        Path("bad.onnx").write_bytes(b"not a model")
        report(bad=failure(lambda: build_engine("bad.onnx", precision="fp16")),
               absent=failure(lambda: build_engine("absent.onnx", precision="fp16")))
        """,
    )
    assert found["bad"]["type"] == found["absent"]["type"] == "ModelError"
    assert "bad.onnx: TensorRT's parser cannot read it" in found["bad"]["message"]
    assert "absent.onnx: no such file" in found["absent"]["message"]


def test_an_engine_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        report(failed=failure(lambda: build_engine("static.onnx", "nowhere/m.engine", precision="fp16")))
        """,
    )
    assert found["failed"]["type"] == "OutputError"


def test_wrong_arguments_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        def asked(**options): return failure(lambda: build_engine("static.onnx", **options))["message"]
        report(precision=asked(precision="int4"), without=asked(),
               beside=asked(precision="fp16", calibrator=EntropyCalibrator([])),
               dla=asked(calibrator=MinMaxCalibrator([]), dla_core=0),
               shape=asked(precision="fp16", shapes={"x": (1,)}), stranger=asked(calibrator=object()),
               batch=asked(calibrator=EntropyCalibrator(batches(1, size=2)), batch_size=8))
        """,
    )
    assert "precision must be one of fp32, fp16, int8" in found["precision"]
    assert found["without"] == found["beside"] == "a calibrator goes with precision 'int8', and only with that"
    assert "DLA takes EntropyCalibration2 only" in found["dla"]
    assert "the model's inputs are ['image']" in found["shape"]
    assert found["stranger"] == "expected a calibrator of this package, got object"
    assert "batch size 8 was asked for" in found["batch"]


@VERSIONS
def test_flags_say_what_was_asked_for(tmp_path: Path, trt: str) -> None:
    """The plan of the fake names the flags it was built with: bit 0 is FP16, bit 1 INT8, bit 3 GPU fallback."""
    found = drive(
        tmp_path,
        """
        def flags(**options):
            plan = build_engine("static.onnx", **options).plan
            return int(plan.split(b"flags=")[1].split()[0], 16)
        new = lambda: EntropyCalibrator(batches(1, size=2))
        report(fp32=flags(precision="fp32"), fp16=flags(precision="fp16"), int8=flags(calibrator=new()),
               alone=flags(calibrator=new(), fp16=False), dla=flags(calibrator=new(), dla_core=0, gpu_fallback=True))
        """,
        trt=trt,
    )
    fallback = found.pop("dla") & ~3
    assert found == {"fp32": 0, "fp16": 1, "int8": 3, "alone": 2}
    assert bin(fallback).count("1") == 1


def test_the_timing_cache_is_extended(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        build_engine("static.onnx", precision="fp16", timing_cache="t.cache")
        first = Path("t.cache").read_bytes()
        build_engine("static.onnx", precision="fp16", timing_cache="t.cache")
        report(first=first, bad=failure(lambda: build_engine("static.onnx", precision="fp16", timing_cache=".")))
        """,
    )
    assert found["first"] == "TRTFAKE-TIMINGS\n"
    assert found["bad"]["type"] == "OutputError"


def test_handed_over_ranges_need_no_data_and_are_refused_or_taken_as_they_are(tmp_path: Path) -> None:
    program = """
    cache = b"TRT-8601-EntropyCalibration2\\nimage: 3c010a14\\n"
    take = lambda **options: build_engine("dynamic.onnx", "m.engine", calibrator=CachedCalibrator(cache), **options)
    report(failed=failure(lambda: take(batch_size=4)), engine=bool(engine()), open=failure(take), live=live())
    """
    taken = drive(tmp_path, program)
    assert taken["failed"] is None
    assert taken["engine"] is True
    assert "input 'image' has dynamic axes (-1, 3, 8, 8); say its shape" in taken["open"]["message"]
    (tmp_path / "m.engine").unlink()
    refused = drive(tmp_path, program, TRTFAKE_REFUSE="1")
    assert "TensorRT did not take the" in refused["failed"]["message"]
    assert refused["engine"] is False


def test_percentile_ranges_take_the_shapes_of_their_batches(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        calibrator = PercentileCalibrator(batches(2, size=4), model="dynamic.onnx", percentile=99)
        built = build_engine("dynamic.onnx", "m.engine", calibrator=calibrator)
        report(opt=built.profile["image"].opt, batch=built.batch_size, calibrated=built.calibrated,
               engine=bool(engine()), costly=built.coverage.costly)
        """,
    )
    assert found == {"opt": [4, 3, 8, 8], "batch": None, "calibrated": {}, "engine": True, "costly": {}}


def test_only_what_was_calibrated_has_a_batch_size(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        def built():
            calibrator = EntropyCalibrator(batches(2), cache="c", model="dynamic.onnx", data_key="x")
            return build_engine("dynamic.onnx", calibrator=calibrator).batch_size
        report(first=built(), reused=built(), fp16=build_engine("static.onnx", precision="fp16").batch_size,
               handed=build_engine("static.onnx", calibrator=CachedCalibrator("c")).batch_size)
        """,
    )
    assert found == {"first": 4, "reused": None, "fp16": None, "handed": None}


def test_no_result_is_written_over_an_input_or_another_result(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        from trtcal.samples.batches import Batches
        from trtcal.samples.sources import open_source
        from trtcal.model.batch_axis import model_inputs
        from trtcal.model.read import load_model
        os.symlink("static.onnx", "link"); os.link("static.onnx", "hard")
        os.symlink("away.engine", "away"); np.save("x.npy", np.zeros((4, *SHAPE), np.float32))
        Path("t.cache.json").write_text("{}")
        source = open_source("x.npy", inputs=model_inputs(load_model("static.onnx")))
        before = {name: Path(name).read_bytes() for name in ("static.onnx", "dynamic.onnx", "x.npy", "t.cache.json")}
        def never():
            raise AssertionError("work was done")
            yield
        def tried(engine="m.engine", cache=None, timing=None, data=None, policy="write"):
            def action():
                calibrator = EntropyCalibrator(
                    data or never(), cache=cache, policy=policy if cache else "auto", model="static.onnx")
                build_engine("static.onnx", engine, calibrator=calibrator, timing_cache=timing)
            return failure(action)
        results = dict(
            engine=tried("static.onnx"), link=tried("link"), hard=tried("hard"), stranger=tried("dynamic.onnx"),
            cache=tried(cache="static.onnx"), auto=tried(cache="static.onnx", policy="auto"),
            cache_link=tried(cache="link"), timing=tried(timing="static.onnx"), both=tried("e", "e"),
            sidecar=tried("e.json", "e"), times=tried("t", timing="t"), cache_times=tried("e", "t", "t"),
            over_sidecar=tried(cache="t.cache"), data=tried("x.npy", data=Batches(source, 2)),
            cache_data=tried(cache="x.npy", data=Batches(source, 2)), same=tried("away", "away.engine"),
            folder=tried("."), nowhere=tried("nowhere/m.engine"))
        after = {name: Path(name).read_bytes() for name in before}
        report(results=results, same=before == after, left=sorted(os.listdir(".")))
        """,
    )
    for name, failed in found["results"].items():
        assert failed is not None, name
        assert failed["type"] == "OutputError", (name, failed)
    assert found["same"]
    assert "m.engine" not in found["left"]


def test_an_engine_is_replaced_by_an_engine(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        results = []
        for old in (b"", b"ftrt....", b"TRTFAKE-PLAN old", bytes(100)):
            Path("m.engine").write_bytes(old)
            build_engine("static.onnx", "m.engine", precision="fp16")
            results.append(engine() != old)
        report(results=results)
        """,
    )
    assert found == {"results": [True] * 4}


def test_a_build_that_fails_before_tensorrt_asks_leaves_the_calibrator_for_another(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        calibrator = EntropyCalibrator(iter(batches(3)), cache="c")
        failed = [failure(lambda: build_engine("absent.onnx", calibrator=calibrator)),
                  failure(lambda: build_engine("dynamic.onnx", calibrator=calibrator, batch_size=8)),
                  failure(lambda: build_engine("static.onnx", calibrator=calibrator))]
        built = build_engine("dynamic.onnx", "m.engine", calibrator=calibrator)
        again = failure(lambda: build_engine("dynamic.onnx", "m.engine", calibrator=calibrator))
        report(failed=[f["type"] for f in failed], consumed=calibrator.feed.consumed, batch=built.batch_size,
               again=again, live=live())
        """,
    )
    assert found["failed"] == ["ModelError", "DataError", "DataError"]
    assert (found["consumed"], found["batch"]) == (3, 4)
    assert found["again"] is not None
    assert found["live"] == {}


def test_a_cache_that_names_no_tensor_of_the_network_is_an_error(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        Path("c").write_bytes(b"TRT-100300-EntropyCalibration2\\nother: 3c010a14\\n")
        read = lambda: EntropyCalibrator(batches(2, size=2), cache="c", policy="read")
        report(cached=failure(lambda: build_engine("static.onnx", "m.engine", calibrator=CachedCalibrator("c"))),
               read=failure(lambda: build_engine("static.onnx", "m.engine", calibrator=read())),
               empty=failure(lambda: build_engine("static.onnx", calibrator=CachedCalibrator(
                   b"TRT-100300-EntropyCalibration2\\n"))), engine=engine())
        """,
    )
    assert found.pop("engine") is None
    for failed in found.values():
        assert failed["type"] == "CacheError"
        assert "names no tensor of the network" in failed["message"]


def test_an_input_that_is_no_array_is_told_with_its_own_error(tmp_path: Path) -> None:
    found = drive(
        tmp_path,
        """
        def asked(value):
            data = [{"image": value, "label": ["a", "b"]}]
            return failure(lambda: build_engine("static.onnx", calibrator=EntropyCalibrator(data)))
        good = failure(lambda: build_engine("static.onnx", calibrator=EntropyCalibrator(
            [{**batches(1, size=2)[0], "label": ["a", "b"]}])))
        report(list=asked([1, 2]), none=asked(None), good=good)
        """,
    )
    assert "input 'image': cannot feed a builtins.list" in found["list"]["message"]
    assert "input 'image': cannot feed a builtins.NoneType" in found["none"]["message"]
    assert found["good"] is None


def test_without_calibrators_the_build_says_what_to_do(tmp_path: Path) -> None:
    found = fakecuda.run(
        """
        from calibrators import build_engine
        from fakecuda.report import failure, report
        report(failed=failure(lambda: build_engine("m.onnx", precision="fp16")))
        """,
        trt=None,
    )
    assert found["failed"]["type"] == "CalibratorsUnavailable"
