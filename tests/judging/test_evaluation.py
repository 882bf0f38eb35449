from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from bypassing import beside_int8, both_inputs
from models import conv_model, images, make_model, save
from onnx import helper

from trtcal.calibration.calibrate import calibrate
from trtcal.errors import DataError, ModelError
from trtcal.judging.accuracy import agreement, evaluate, simulate
from trtcal.judging.evaluation import compare, fed_as, judged_by, labels_of, open_runner, plain
from trtcal.judging.metrics import METRICS, Outputs
from trtcal.model.file import save_model
from trtcal.model.runner import OrtRunner
from trtcal.qdq.insert import insert_qdq
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArraySource
from trtcal.spec import InputSpec

LABELS = np.arange(10) % 5


def batches(number: int = 10, size: int = 4) -> Batches:
    return Batches(ArraySource({"image": images(number)}), size)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv_model(), tmp_path / "m.onnx")


@pytest.fixture
def scales(model: Path) -> dict[str, np.float32]:
    return dict(calibrate(model, batches(), "entropy").cache.scales)


def test_one_pass_gives_what_evaluate_and_agreement_give(scales: dict[str, np.float32]) -> None:
    with OrtRunner(conv_model()) as fp32, simulate(conv_model(), scales) as int8:
        found = compare(int8, batches(), reference=fp32, labels=LABELS, metrics=METRICS)
        after, before = (evaluate(runner, batches(), LABELS, METRICS) for runner in (int8, fp32))
        expected = agreement(fp32, int8, batches())
    assert found.samples == after.samples
    for name in METRICS:
        np.testing.assert_array_equal(found.scores[name].values, after.scores[name].values)
        np.testing.assert_array_equal(found.reference[name].values, before.scores[name].values)
        change = after.scores[name].value - before.scores[name].value
        assert found.changes[name].value == pytest.approx(change)
    assert found.agreement is not None
    assert found.agreement.outputs["logits"].sqnr_db == expected.outputs["logits"].sqnr_db


def test_each_model_is_run_once_per_batch() -> None:
    calls = []

    def model(name: str) -> object:
        def predict(batch: object) -> Outputs:
            calls.append(name)
            return {"y": np.eye(4, 5)}

        return predict

    compare(model("int8"), batches(8), reference=model("fp32"), labels=LABELS[:8])  # type: ignore[arg-type]
    assert sorted(calls) == ["fp32"] * 2 + ["int8"] * 2


def test_without_labels_there_is_agreement_and_without_a_reference_there_are_scores() -> None:
    with OrtRunner(conv_model()) as runner:
        agreed = compare(runner, batches(), reference=runner)
        scored = compare(runner, batches(), labels=LABELS)
        with pytest.raises(ValueError, match="nothing to measure"):
            compare(runner, batches())
        with pytest.raises(DataError, match="no samples"):
            compare(runner, [], labels=[])
    assert (agreed.scores, agreed.reference, agreed.changes) == ({}, {}, {})
    assert agreed.agreement is not None
    assert agreed.agreement.outputs["logits"].sqnr_db == math.inf
    assert list(scored.scores) == ["top1"]
    assert (scored.reference, scored.changes, scored.agreement) == ({}, {}, None)


def test_a_metric_of_the_whole_set_has_no_paired_change() -> None:
    with OrtRunner(conv_model()) as runner:
        found = compare(
            runner,
            batches(),
            reference=runner,
            labels=LABELS,
            metrics={"m": lambda outputs, labels: float(len(labels))},
        )
    assert found.scores["m"].value == found.reference["m"].value == 10
    assert found.changes == {}


def test_the_result_is_plain_json_even_where_it_is_infinite_or_nan() -> None:
    with OrtRunner(conv_model()) as runner:
        metrics = {"whole": lambda outputs, labels: 1.0, **METRICS}
        found = compare(runner, batches(), reference=runner, labels=LABELS, metrics=metrics)
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["samples"] == 10
    assert report["agreement"]["logits"]["sqnr_db"] == "inf"
    assert report["scores"]["whole"]["low"] is None
    assert report["agreement"]["logits"]["top1"]["value"] == 1
    assert [plain(value) for value in (1.5, math.inf, -math.inf, math.nan)] == [1.5, "inf", "-inf", None]


def test_a_model_is_opened_as_written_or_as_int8(model: Path, scales: dict[str, np.float32]) -> None:
    batch = {"image": images(4)}
    with open_runner(model, batches()).runner as runner, OrtRunner(conv_model()) as expected:
        np.testing.assert_array_equal(runner(batch)["logits"], expected(batch)["logits"])
    opened = open_runner(model, batches(), scales=scales, placement="tensorrt", exclude=["Gemm"])
    with opened.runner as runner, simulate(conv_model(), scales, placement="tensorrt", exclude=["Gemm"]) as expected:
        np.testing.assert_array_equal(runner(batch)["logits"], expected(batch)["logits"])
    assert ("offset_output", "a constant, which is computed as it is") in opened.skipped
    assert opened.int8 == opened.candidates == 1


def test_how_much_of_a_model_is_int8_is_told_and_nothing_is_refused(model: Path, scales: dict[str, np.float32]) -> None:
    whole = open_runner(model, batches(), scales=scales)
    part = open_runner(model, batches(), scales={"image": scales["image"]})
    for opened in (whole, part):
        opened.runner.close()
    assert whole.int8 == whole.candidates == part.candidates
    assert part.int8 is not None
    assert whole.int8 is not None
    assert 0 < part.int8 < whole.int8
    with pytest.raises(ModelError, match=r"m\.onnx: nothing becomes INT8 with these ranges"):
        open_runner(model, batches(), scales={"logits": np.float32(1)})


def test_weights_beside_the_file_are_found(tmp_path: Path, scales: dict[str, np.float32]) -> None:
    save_model(conv_model(), tmp_path / "e.onnx", external=True)
    with open_runner(tmp_path / "e.onnx", batches(), scales=scales).runner as runner:
        assert runner({"image": images(4)})["logits"].shape == (4, 5)


@pytest.mark.parametrize("fixed", [1, 3])
def test_a_batch_size_in_the_file_gives_way_to_that_of_the_batches(
    tmp_path: Path, fixed: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(conv_model(batch=fixed), tmp_path / "f.onnx")
    with open_runner(path, batches()).runner as runner, OrtRunner(conv_model()) as free:
        assert agreement(free, runner, batches()).outputs["logits"].sqnr_db == math.inf
    assert f"f.onnx: has batch size {fixed} built in; running it with 4" in caplog.text


def test_a_batch_size_that_cannot_give_way_is_told(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["image", "offset"], ["logits"])]
    offset = {"offset": np.zeros((3, 3, 8, 8), np.float32)}
    path = save(make_model(nodes, {"image": [3, 3, 8, 8]}, ["logits"], offset), tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=r"f\.onnx: has batch size 3 built in; use batches of 3 \("):
        open_runner(path, batches())
    with open_runner(path, batches(size=3)).runner as runner:
        assert runner({"image": images(3)})["logits"].shape == (3, 3, 8, 8)


def test_labels_come_from_the_samples_or_from_a_file(tmp_path: Path) -> None:
    labelled = Batches(ArraySource({"image": images(3)}, labels=[2, 0, 1]), 2, order=[0, 1])
    assert labels_of(labelled, None, ["top1"]) == (2, 0)
    assert labels_of(batches(), None, ["top1"]) is None
    (tmp_path / "l.csv").write_text("0,cat\n1,dog\n2,\n")
    assert labels_of(labelled, tmp_path / "l.csv", ["m.py:f"]) == {"0": "cat", "1": "dog", "2": ""}
    with pytest.raises(DataError, match=r"l\.csv:3: label ''"):
        labels_of(labelled, tmp_path / "l.csv", ["m.py:f", "top1"])
    (tmp_path / "l.csv").write_text("0,cat\n1,dog\n")
    assert labels_of(labelled, tmp_path / "l.csv", ["top5"]) == {"0": 0, "1": 1}
    (tmp_path / "l.csv").write_text("0,7\n1,4\n2,1\n")
    assert labels_of(labelled, tmp_path / "l.csv", ["m.py:f"]) == {"0": 7, "1": 4, "2": 1}


def test_scores_of_another_mix_of_classes_say_so(caplog: pytest.LogCaptureFixture) -> None:
    rare = Batches(ArraySource({"image": images(20)}, labels=[0] * 18 + [1] * 2), 2)
    labels_of(rare, None, ["top1"])
    assert not caplog.messages
    labels_of(rare.part(4), None, ["top1"])
    (said,) = caplog.messages
    assert "spread over classes: 50% of them are of class 0, of all samples 90%" in said


def test_a_sample_without_a_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("0,1\n")
    with pytest.raises(DataError, match=r"l\.csv: no label for '1' and 8 more"):
        labels_of(batches(), tmp_path / "l.csv", ["top1"])


def test_what_judges_a_model_is_known_by_its_content_and_not_by_where_it_lies(tmp_path: Path) -> None:
    def key(text: str, folder: str, labels: object = (2, 0, 1), function: str = "f") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "m.py").write_text(text)
        return judged_by(batches(3), labels, f"{tmp_path / folder / 'm.py'}:{function}")  # type: ignore[arg-type]

    same = key("1", "a")
    assert key("1", "b") == same
    assert key("1", "a", {"2": 1, "1": 0, "0": 2, "another": 7}) == same  # by name, as a CSV file has them
    others = [key("2", "a"), key("1", "a", (2, 0, 2)), key("1", "a", ("2", "0", "1")), key("1", "a", function="g")]
    others += [judged_by(batches(3), (2, 0, 1), "top1"), judged_by(batches(4), (2, 0, 1, 1), "top1")]
    others += [judged_by(batches(3), (2, 0, 1), "top5"), judged_by(batches(3), None, "top1")]
    assert len({same, *others}) == 1 + len(others)
    assert judged_by(batches(3), None, "top5") == others[-1]
    with pytest.raises(DataError, match=r"gone\.py: cannot be read"):
        judged_by(batches(3), (2, 0, 1), "gone.py:f")


def test_a_model_is_fed_in_its_own_dtype_what_was_made_for_an_engine_s(tmp_path: Path) -> None:
    """TensorRT 8 reads int64 as int32: batches made for such an engine are for its model as well."""
    spec = InputSpec("ids", np.dtype(np.int64), (3,))
    model = make_model([helper.make_node("Identity", ["ids"], ["y"])], {"ids": ["N", 3]}, ["y"], dtypes={"ids": 7})
    with OrtRunner(model) as runner:
        fed = fed_as(runner, [spec])
        ids = np.arange(6, dtype=np.int32).reshape(2, 3)
        np.testing.assert_array_equal(fed({"ids": ids})["y"], ids)
        with pytest.raises(DataError, match=r"float32 value 0\.5 is none of int64"):
            fed({"ids": ids.astype(np.float32) + np.float32(0.5)})


def test_each_output_says_whether_it_depends_on_int8_and_is_floating_point(tmp_path: Path) -> None:
    model = save(beside_int8(), tmp_path / "m.onnx")
    data = Batches(both_inputs(20), 8)
    scales = calibrate(model, data, "minmax").cache.scales
    pairs = save(insert_qdq(model, scales, placement="all").model, tmp_path / "q.onnx")
    for opened in (open_runner(model, data, scales=scales), open_runner(pairs, data)):
        assert opened.reached == {"best", "y"}
        with opened.runner as int8, OrtRunner(beside_int8()) as fp32:
            found = compare(int8, data, reference=fp32, reached=opened.reached).to_dict()["agreement"]
        told = {name: (output["floating"], output["depends_on_int8"]) for name, output in found.items()}
        assert told == {"ids_out": (False, False), "neg": (True, False), "best": (False, True), "y": (True, True)}
    plain_runner = open_runner(model, data)
    assert plain_runner.reached is None
    with plain_runner.runner as same, OrtRunner(beside_int8()) as fp32:
        outputs = compare(same, data, reference=fp32).to_dict()["agreement"].values()
    assert {output["depends_on_int8"] for output in outputs} == {None}
