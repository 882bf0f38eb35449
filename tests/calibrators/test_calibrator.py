"""The promises of every calibrator, on the genuine bindings of TensorRT over test doubles (tests/helpers/fakecuda)."""

from __future__ import annotations

import signal
from pathlib import Path

import fakecuda
import pytest

VERSIONS = pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
MEMORIES = pytest.mark.parametrize("memory", ["cuda", "pycuda"])


# Being driven


@VERSIONS
@pytest.mark.parametrize("size_first", [True, False])
def test_the_trampolines_reach_every_method(tmp_path: Path, trt: str, size_first: bool) -> None:
    """Without a builder: the C++ calls that TensorRT makes, one by one, in either order."""
    found = fakecuda.drive(
        tmp_path,
        """
        from fakecuda.caldriver import Driver
        results = {}
        for kind in (EntropyCalibrator, MinMaxCalibrator, LegacyCalibrator):
            calibrator = kind(batches(3), cache=f"{kind.__name__}.cache")
            text = f"TRT-100300-{calibrator.algorithm}\\nimage: 3c010a14\\n".encode()
            driver = Driver(trt, calibrator)
            calls = driver.calibrate(["image"], text, size_first=sys.argv[1] == "True")
            calibrator.raise_if_failed()
            written = Path(f"{kind.__name__}.cache").read_bytes()
            results[kind.__name__] = [driver.get_algorithm(), calls, written == text]
        cached = Driver(trt, CachedCalibrator("EntropyCalibrator.cache"))
        results["cached"] = [cached.get_algorithm(), cached.calibrate(["image"], b"")]
        report(live=live(), **results)
        """,
        str(size_first),
        trt=trt,
    )
    calls = ["read_calibration_cache miss", "get_batch_size 4", "get_batch 3", "write_calibration_cache"]
    if size_first:
        calls[:2] = calls[1::-1]
    assert found == {
        "EntropyCalibrator": [2, calls, True],
        "MinMaxCalibrator": [3, calls, True],
        "LegacyCalibrator": [0, calls, True],
        "cached": [2, ["get_batch_size 1", "read_calibration_cache hit"]],
        "live": {},
    }


@MEMORIES
def test_ten_thousand_batches_allocate_no_more_than_a_few(tmp_path: Path, memory: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        seen = []
        def data():
            for number in range(10_000):
                if number in (5, 9_999):
                    seen.append([live(), fakelib.live("total"), fakelib.calls("cuMemHostAlloc")])
                yield {"image": np.ones((1, 3, 8, 8), np.float32)}
        with MinMaxCalibrator(data()) as calibrator:
            build(calibrator, opt=1)
        report(seen=seen, live=live(), consumed=calibrator.feed.consumed)
        """,
        memory=memory,
    )
    assert found["seen"][0] == found["seen"][1]
    assert found["consumed"] == 10_000
    assert found["live"] == {}


@MEMORIES
def test_a_build_on_a_thread_without_a_context_leaves_none_behind(tmp_path: Path, memory: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        contexts = []
        def work():
            with MinMaxCalibrator(batches(3)) as calibrator:
                build(calibrator)
            contexts.append(fakelib.context())
        thread = threading.Thread(target=work); thread.start(); thread.join()
        work()
        report(contexts=contexts, live=live())
        """,
        memory=memory,
    )
    assert found == {"contexts": [0, 0], "live": {}}


@MEMORIES
def test_somebody_elses_context_stays_current_and_unharmed(tmp_path: Path, memory: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        from ctypes import CDLL, byref, c_void_p
        driver, own = CDLL("libcuda.so.1"), c_void_p()
        driver.cuInit(0); driver.cuCtxCreate_v2(byref(own), 0, 0)
        with MinMaxCalibrator(batches(3)) as calibrator:
            build(calibrator)
        same = fakelib.context() == own.value
        driver.cuCtxDestroy_v2(own)
        report(same=same, live=live())
        """,
        memory=memory,
    )
    assert found == {"same": True, "live": {}}


def test_several_calibrators_may_live_at_once(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        with EntropyCalibrator(batches(2)) as one, MinMaxCalibrator(batches(3)) as two:
            build(two); build(one)
        report(consumed=[one.feed.consumed, two.feed.consumed], live=live())
        """,
    )
    assert found == {"consumed": [2, 3], "live": {}}


def test_a_calibrator_without_a_cache_file_still_knows_its_ranges(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        with MinMaxCalibrator(batches(2)) as calibrator:
            build(calibrator)
        report(ranges=list(calibrator.ranges.scales), files=os.listdir("."))
        """,
    )
    assert found == {"ranges": ["image"], "files": []}


# Poison


@VERSIONS
@MEMORIES
def test_an_exception_in_batch_3_is_raised_and_no_cache_is_written(tmp_path: Path, trt: str, memory: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        results = {}
        for order in ("size", "cache"):
            os.environ["TRTFAKE_ORDER"] = order
            plans = []
            def script():
                with EntropyCalibrator(failing(5, OSError("disk gone"), after=2), cache="model.cache") as calibrator:
                    plans.append(build(calibrator)[0])
            results[order] = failure(script)
            results[order]["plan"] = bool(plans[0])
        report(files=os.listdir("."), live=live(), **results)
        """,
        trt=trt,
        memory=memory,
    )
    assert found["files"] == []
    assert found["live"] == {}
    for order in ("size", "cache"):
        assert found[order] == {
            "type": "DataError",
            "cause": "OSError",
            "message": "calibration, batch 3: OSError: disk gone",
            "plan": True,  # what is guarded against: TensorRT gave a plan all the same
        }


@VERSIONS
def test_a_plain_script_whose_third_batch_fails_exits_non_zero_and_writes_no_engine(tmp_path: Path, trt: str) -> None:
    done = fakecuda.start_driven(
        tmp_path,
        """
        calibrator = EntropyCalibrator(failing(5, ValueError("bad picture"), after=2), cache="model.cache")
        with calibrator:
            plan, log = build(calibrator)
            assert plan is not None
        Path("model.engine").write_bytes(plan)
        """,
        trt=trt,
    )
    assert done.returncode == 1
    assert "DataError: calibration, batch 3: ValueError: bad picture" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_error_is_logged_the_moment_it_happens(tmp_path: Path) -> None:
    done = fakecuda.start_driven(
        tmp_path,
        """
        import logging
        logging.basicConfig(format="%(levelname)s %(message)s")
        class Shout(Log):
            def log(self, severity, message): print("TensorRT:", message, file=sys.stderr)
        import fakecuda.driven
        fakecuda.driven.Log = Shout
        build(EntropyCalibrator(failing(5, OSError("disk gone"), after=2)))
        """,
    )
    lines = done.stderr.splitlines()
    logged = lines.index("ERROR calibration, batch 3: disk gone; no cache will be written")
    assert logged < lines.index("TensorRT: trtfake: calibrated with 1 batches of 4")


def test_a_kept_error_is_raised_on_request_too_as_often_as_it_is_asked_for(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        calibrator = EntropyCalibrator(failing(5, OSError("disk gone"), after=2), cache="model.cache")
        build(calibrator)
        report(first=failure(calibrator.raise_if_failed), again=failure(calibrator.raise_if_failed),
               ranges=calibrator.ranges, files=os.listdir("."))
        """,
    )
    assert found["first"] == found["again"]
    assert found["first"]["message"] == "calibration, batch 3: OSError: disk gone"
    assert found["ranges"] is None
    assert found["files"] == []


@MEMORIES
def test_ctrl_c_while_data_is_read_ends_the_script_and_leaves_no_file(tmp_path: Path, memory: str) -> None:
    done = fakecuda.start_driven(
        tmp_path,
        """
        import signal, time
        # A shell that starts the tests in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def data():
            yield from batches(2)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        with EntropyCalibrator(data(), cache="model.cache") as calibrator:
            plan, log = build(calibrator)
        Path("model.engine").write_bytes(plan)
        """,
        memory=memory,
    )
    assert done.returncode == -signal.SIGINT
    assert "KeyboardInterrupt: calibration, batch 3" in done.stderr
    assert list(tmp_path.iterdir()) == []


INTERRUPT = """
def interrupt(function, count):
    # Raises on entry of a method, before its first line, as Python delivers a signal that is pending
    left = [count]
    def trace(frame, event, argument):
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith("calibrator.py"):
            left[0] -= 1
            if not left[0]:
                sys.settrace(None)
                raise KeyboardInterrupt
    sys.settrace(trace)
"""


@VERSIONS
def test_an_interrupt_on_the_way_into_a_callback_is_an_error_and_leaves_no_file(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        INTERRUPT
        + """
Path("m.onnx").write_bytes(onnx_model())
results = []
calls = [("read_calibration_cache", 1), ("get_batch_size", 1), ("write_calibration_cache", 1)]
for function, count in [*calls, *(("get_batch", n) for n in range(1, 7))]:
    def engine():
        interrupt(function, count)
        build_engine("m.onnx", "m.engine", calibrator=EntropyCalibrator(batches(5), cache="m.cache"))
    def script():
        with EntropyCalibrator(batches(5), cache="m.cache") as calibrator:
            interrupt(function, count)
            build(calibrator)
    for run in engine, script:
        failed = failure(run)
        sys.settrace(None)
        results.append([function, count, failed and failed["type"], sorted(os.listdir("."))])
report(results=results, live=live())
""",
        trt=trt,
    )
    assert len(found["results"]) == 18
    for function, count, failed, files in found["results"]:
        assert (failed, files) == ("BackendError", ["m.onnx"]), (function, count)
    assert found["live"] == {}


def test_an_interrupt_while_ranges_are_handed_over_is_an_error(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        INTERRUPT
        + """
cache = b"TRT-100300-EntropyCalibration2\\nimage: 3c010a14\\n"
Path("m.cache").write_bytes(cache)
from trtcal.errors import BackendError
makers = [lambda: CachedCalibrator(cache), lambda: EntropyCalibrator(batches(2), cache="m.cache", policy="read")]
results = []
for refuse, function in (("", "read_calibration_cache"), ("1", "get_batch")):
    os.environ["TRTFAKE_REFUSE"] = refuse
    for make in makers:
        def script():
            with make() as calibrator:
                interrupt(function, 1)
                if build(calibrator)[0] is None:  # TensorRT's own refusal of a calibration without a batch
                    raise BackendError("no plan")
        results.append(failure(script))
        sys.settrace(None)
kept = []
for data in (b"TRT-100300-EntropyCalibration2\\n", b"TRT-100300-EntropyCalibration2\\nimage: 3d010a14\\n"):
    calibrator = CachedCalibrator(cache)
    calibrator.read_calibration_cache()
    calibrator.write_calibration_cache(data)
    kept.append(failure(calibrator.raise_if_failed))
report(results=results, kept=kept, same=Path("m.cache").read_bytes() == cache)
""",
    )
    assert [failed and failed["type"] for failed in found["results"] + found["kept"]] == ["BackendError"] * 6
    assert found["same"]


def test_a_calibrator_serves_one_build(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        calibrator = EntropyCalibrator(batches(2), cache="c", policy="write")
        build(calibrator)
        calibrator.raise_if_failed()
        before = Path("c").read_bytes()
        build(calibrator)
        closed, cached = EntropyCalibrator(batches(2)), CachedCalibrator("c")
        for used in (closed, cached):
            used.close()
            build(used)
        report(second=failure(calibrator.raise_if_failed), closed=failure(closed.raise_if_failed),
               cached=failure(cached.raise_if_failed), same=before == Path("c").read_bytes())
        """,
    )
    assert found.pop("same")
    for failed in found.values():
        assert failed["type"] == "BackendError"
        assert "a calibrator serves one build" in failed["message"]


@VERSIONS
def test_a_plain_script_can_have_shapes_checked_against_the_network(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def parsed(batch):
            log = Log()
            builder = trt.Builder(log)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, log)
            assert parser.parse(onnx_model(batch))
            profile = builder.create_optimization_profile()
            profile.set_shape("image", (1, *SHAPE), (4, *SHAPE), (8, *SHAPE))
            return network, profile, [builder, parser, log]
        def script(batch, with_profile, size):
            network, profile, keep = parsed(batch)
            with EntropyCalibrator(batches(2, size=size)) as calibrator:
                calibrator.expect_network(network, profile if with_profile else None)
                build(calibrator, opt=4)
        dynamic, static = parsed("N"), parsed(4)
        strange = CachedCalibrator(b"TRT-100300-EntropyCalibration2\\nx: 3c010a14\\n")
        empty = dynamic[2][0].create_optimization_profile()
        report(small=failure(lambda: script("N", True, 2)), static=failure(lambda: script(4, False, 2)),
               good=[failure(lambda: script("N", True, 4)), failure(lambda: script(4, False, 4))],
               open=failure(lambda: script("N", False, 4)),
               without=failure(lambda: EntropyCalibrator([]).expect_network(dynamic[0], empty)),
               strange=failure(lambda: strange.expect_network(static[0])))
        """,
        trt=trt,
    )
    for name in ("small", "static"):
        assert "the shape is (2, 3, 8, 8), the network reads (4, 3, 8, 8)" in found[name]["message"]
    assert found["good"] == [None, None]
    for name in ("open", "without"):
        assert found[name]["type"] == "ValueError"
        assert "input 'image' is (-1, 3, 8, 8): pass the calibration profile" in found[name]["message"]
    assert found["strange"]["type"] == "CacheError"


def test_an_exit_that_calls_itself_a_success_does_not_hide_a_failure(tmp_path: Path) -> None:
    programs = [
        """
        with EntropyCalibrator(failing(5, SystemExit(0), after=1), cache="model.cache") as calibrator:
            build(calibrator)
        """,
        """
        with EntropyCalibrator(failing(5, OSError("disk gone"), after=1), cache="model.cache") as calibrator:
            build(calibrator)
            sys.exit()
        """,
    ]
    for program in programs:
        done = fakecuda.start_driven(tmp_path, program)
        assert done.returncode == 1
        assert "DataError: calibration, batch 2" in done.stderr
        assert list(tmp_path.iterdir()) == []


def test_the_sidecar_tells_what_was_really_fed(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        from trtcal.samples.batches import Batch
        from trtcal.cache.provenance import read_sidecar
        Path("m.onnx").write_bytes(onnx_model())
        padded = [Batch(b, valid=valid) for b, valid in zip(batches(2), (4, 1))]
        class Stream:
            batch_size = 99
            def __iter__(self): return iter(padded)
        results = []
        for data, claims in ((padded, 4), (Stream(), 4)):
            for attempt in range(2):
                with EntropyCalibrator(data, cache="c", model="m.onnx", data_key="x") as calibrator:
                    build(calibrator)
                made = read_sidecar("c")[0]
                results.append([calibrator.feed.consumed, made.batch_size, made.samples_used])
            os.remove("c"); os.remove("c.json")
        report(results=results)
        """,
    )
    assert found["results"] == [[2, 4, 5], [0, 4, 5], [2, 4, 5], [2, 4, 5]]


def test_sys_exit_in_a_loader_keeps_its_code(tmp_path: Path) -> None:
    done = fakecuda.start_driven(
        tmp_path,
        """
        with EntropyCalibrator(failing(5, SystemExit(7), after=1), cache="model.cache") as calibrator:
            build(calibrator)
        """,
    )
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_our_own_keeps_its_type_and_gains_batch_and_samples(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        from trtcal.samples.batches import Batch
        good, bad = (Batch(b, samples=("a", "b", "c", "d")) for b in batches(2))
        bad["image"][2, 0, 0, 0] = np.nan
        def script():
            with EntropyCalibrator([good, bad], cache="model.cache") as calibrator:
                build(calibrator)
        report(failed=failure(script), files=os.listdir("."))
        """,
    )
    assert found["failed"]["type"] == "NonFiniteError"
    assert found["failed"]["message"].startswith(
        "calibration, batch 2 (samples a, b, c, d): input 'image': sample 'c' holds nan"
    )
    assert found["files"] == []


def test_an_error_raised_because_the_build_failed_gives_way_to_its_cause(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def script():
            with EntropyCalibrator(failing(5, OSError("disk gone"), after=0)) as calibrator:
                plan, log = build(calibrator)
                if plan is None:
                    raise RuntimeError("no engine")
        def unrelated():
            with EntropyCalibrator(batches(1)) as calibrator:
                raise RuntimeError("something else")
        report(failed=failure(script), unrelated=failure(unrelated))
        """,
    )
    assert found["failed"]["message"] == "calibration, batch 1: OSError: disk gone"
    assert found["unrelated"]["message"] == "something else"


@MEMORIES
@pytest.mark.parametrize(
    ("function", "calls"),
    # Two inputs in two slots: four buffers of each kind. Three batches: six copies, and a wait for each batch.
    [("cuMemAlloc_v2", 4), ("cuMemHostAlloc", 4), ("cuMemcpyHtoDAsync_v2", 6), ("cuStreamSynchronize", 3)],
)
def test_cuda_may_fail_at_any_call_and_no_cache_and_no_memory_is_left(
    tmp_path: Path, memory: str, function: str, calls: int
) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        function, calls = sys.argv[1], int(sys.argv[2])
        names, results = ("a", "b"), []
        def script():
            with EntropyCalibrator(batches(3, names=names), cache="model.cache") as calibrator:
                build(calibrator, inputs=names)
        for n in range(1, calls + 1):
            fakelib.fail(f"{function}:{n}:2:100")  # PyCUDA collects garbage and tries a second time
            failed = failure(script)
            fakelib.fail()
            results.append([failed and failed["type"], os.listdir("."), live()])
        script()
        report(results=results, live=live())
        """,
        function,
        str(calls),
        memory=memory,
    )
    assert found == {"results": [["BackendError", [], {}]] * calls, "live": {}}


def test_zero_batches_are_an_error(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        results = {}
        for order in ("size", "cache"):
            os.environ["TRTFAKE_ORDER"] = order
            def script():
                with EntropyCalibrator([], cache="model.cache") as calibrator:
                    build(calibrator)
            results[order] = failure(script)
        report(files=os.listdir("."), **results)
        """,
    )
    for order in ("size", "cache"):
        assert found[order]["type"] == "DataError"
        assert "the data holds no batch at all" in found[order]["message"]
    assert found["files"] == []


def test_a_cache_written_without_a_batch_is_not_believed(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        calibrator = EntropyCalibrator(batches(2), cache="model.cache")
        calibrator.write_calibration_cache(memoryview(b"TRT-100300-EntropyCalibration2\\nimage: 3c010a14\\n"))
        report(failed=failure(calibrator.raise_if_failed), files=os.listdir("."))
        """,
    )
    assert "without having been given one batch, and not those that it was given" in found["failed"]["message"]
    assert found["files"] == []


def test_a_build_that_never_asks_the_calibrator_is_an_error(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def script():
            with EntropyCalibrator(batches(2)) as calibrator:
                build(calibrator, int8=False)
        report(failed=failure(script))
        """,
    )
    assert found["failed"]["type"] == "BackendError"
    assert "set BuilderFlag.INT8" in found["failed"]["message"]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def script():
            with EntropyCalibrator(batches(2), cache="nowhere/model.cache") as calibrator:
                build(calibrator)
        report(failed=failure(script))
        """,
    )
    assert found["failed"]["type"] == "OutputError"
    assert "nowhere" in found["failed"]["message"]


# The size of a batch


def test_where_nothing_is_known_of_the_network_a_small_batch_gets_as_far_as_tensorrt(tmp_path: Path) -> None:
    """The control of the test below: a real TensorRT would read past the end of the buffer."""
    found = fakecuda.drive(
        tmp_path,
        """
        calibrator = EntropyCalibrator(batches(3, size=2))
        plan, log = build(calibrator, opt=4)
        report(log=log, failed=failure(calibrator.raise_if_failed))
        """,
    )
    assert "the feed did not end by itself" in found["failed"]["message"]
    assert "is not 3072 bytes of live device memory" in found["log"][0]


def test_the_size_of_a_batch_is_checked_against_what_the_network_reads(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        def script():
            inputs = {"image": ((4, *SHAPE), "float32")}
            with EntropyCalibrator(batches(3, size=2), cache="model.cache", inputs=inputs) as calibrator:
                build(calibrator, opt=4)
        report(failed=failure(script), files=os.listdir("."))
        """,
    )
    assert found["failed"]["type"] == "DataError"
    assert "the shape is (2, 3, 8, 8), the network reads (4, 3, 8, 8)" in found["failed"]["message"]
    assert found["files"] == []


# The cache policy


@VERSIONS
def test_auto_takes_a_cache_of_the_same_origin_and_recalibrates_saying_why_otherwise(tmp_path: Path, trt: str) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        import logging
        lines = []
        class Keep(logging.Handler):
            def emit(self, record): lines.append(record.getMessage())
        logging.getLogger("calibrators").addHandler(Keep()); logging.getLogger("calibrators").setLevel("INFO")
        Path("a.onnx").write_bytes(onnx_model()); Path("b.onnx").write_bytes(onnx_model(shape=(3, 8, 16)))
        def once(kind=EntropyCalibrator, size=4, **options):
            lines.clear()
            with kind(batches(2, size=size), cache="model.cache", **options) as calibrator:
                build(calibrator, opt=size)
            said = [line for line in lines if line.startswith("model.cache: ") and "written" not in line]
            return [calibrator.feed.consumed, "".join(said)]
        same = dict(model="a.onnx", data_key="cats")
        report(first=once(**same), second=once(**same), model=once(**{**same, "model": "b.onnx"}),
               back=once(**same), data=once(**{**same, "data_key": "dogs"}), back2=once(**same),
               size=once(size=2, **same), kind=once(kind=MinMaxCalibrator, **same),
               unknown=once(), read=once(kind=EntropyCalibrator, policy="read"), write=once(policy="write", **same),
               after=once(**same))
        """,
        trt=trt,
    )
    consumed = {name: count for name, (count, _) in found.items()}
    hits = {"second", "read", "after"}
    assert consumed == {name: 0 if name in hits else 2 for name in found}
    why = {name: line for name, (_, line) in found.items()}
    assert "not there yet" in why["first"]
    assert "used; same model, data and settings" in why["second"]
    assert "model: content differs (a.onnx -> b.onnx)" in why["model"]
    assert "data: samples differ" in why["data"]
    assert "batch size: 4 -> 2" in why["size"]
    assert "method: tensorrt:EntropyCalibration2 -> tensorrt:MinMaxCalibration" in why["kind"]
    assert "cannot be verified, because model= was not given and data_key= was not given" in why["unknown"]
    assert "without asking where it comes from" in why["read"]


def test_a_verified_cache_that_tensorrt_does_not_take_is_calibrated_anew_and_said(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        import logging
        lines = []
        class Keep(logging.Handler):
            def emit(self, record): lines.append(record.getMessage())
        logging.getLogger("calibrators").addHandler(Keep())
        Path("m.onnx").write_bytes(onnx_model())
        for refuse in ("", "1"):
            os.environ["TRTFAKE_REFUSE"] = refuse
            with EntropyCalibrator(batches(2), cache="c", model="m.onnx", data_key="x") as calibrator:
                build(calibrator)
        report(consumed=calibrator.feed.consumed, handed=calibrator.handed_over, written=bool(calibrator.written),
               said=[line for line in lines if "did not take it" in line])
        """,
    )
    said = ["c: TensorRT did not take it and asks for data; calibrating anew"]
    assert found == {"consumed": 2, "handed": None, "written": True, "said": said}


def test_off_leaves_no_file(tmp_path: Path) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        with EntropyCalibrator(batches(2), cache="model.cache", policy="off") as calibrator:
            build(calibrator)
        report(files=os.listdir("."), tensors=len(calibrator.ranges.scales))
        """,
    )
    assert found == {"files": [], "tensors": 1}


# Polygraphy


@VERSIONS
@pytest.mark.parametrize("size", [4, 2])
def test_polygraphys_create_config_takes_a_calibrator_and_tells_it_the_shapes(
    tmp_path: Path, trt: str, size: int
) -> None:
    found = fakecuda.drive(
        tmp_path,
        """
        from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxBytes, Profile
        from polygraphy.logger import G_LOGGER
        G_LOGGER.module_severity = G_LOGGER.CRITICAL
        def script():
            with EntropyCalibrator(batches(3, size=int(sys.argv[1])), cache="model.cache") as calibrator:
                profile = Profile().add("image", (1, *SHAPE), (4, *SHAPE), (8, *SHAPE))
                config = CreateConfig(int8=True, calibrator=calibrator, profiles=[profile])
                EngineBytesFromNetwork(NetworkFromOnnxBytes(onnx_model()), config)()
            return calibrator
        report(failed=failure(script), files=os.listdir("."), live=live())
        """,
        str(size),
        trt=trt,
        full_name=True,
    )
    assert found["live"] == {}
    if size == 4:
        assert found["failed"] is None
        assert sorted(found["files"]) == ["model.cache", "model.cache.json"]
    else:
        assert "the shape is (2, 3, 8, 8), the network reads (4, 3, 8, 8)" in found["failed"]["message"]
        assert found["files"] == []
