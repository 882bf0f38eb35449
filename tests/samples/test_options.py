from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtcal.errors import DataError
from trtcal.judging.evaluation import labels_of
from trtcal.samples.batches import ORDERS, PARTIALS
from trtcal.samples.options import KNOBS, SampleOptions, fix_shapes, image_preprocess, open_both
from trtcal.samples.preprocess import CHOICES, Preprocess
from trtcal.spec import InputSpec

F32 = np.dtype(np.float32)
ROW = InputSpec("x", F32, (4,))
IMAGE = InputSpec("x", F32, (3, None, None))
TOKENS = InputSpec("ids", np.dtype(np.int64), (None,))


def test_numbers_and_lists_may_be_text_and_anything_iterable_is_a_tuple() -> None:
    said = SampleOptions(data=Path("x"), batch_size="4", mean="1,-.5,0", std=[2], scale="1e-1", shape="3x8x8", seed=7.0)  # type: ignore[arg-type]
    meant = SampleOptions(data="x", batch_size=4, mean=(1, -0.5, 0), std=(2,), scale=0.1, shape=("3x8x8",), seed=7)
    assert said == meant
    assert hash(said) == hash(meant)
    assert SampleOptions(data="x", shape=None) == SampleOptions(data="x")  # type: ignore[arg-type]


def test_every_option_that_is_set_is_among_the_arguments_and_makes_the_same_options() -> None:
    whole = SampleOptions(
        data="a b/-x.npy",
        batch_size=4,
        preset="imagenet",
        resize="stretch",
        resize_to=9,
        crop="none",
        interpolation="box",
        color="BGR",
        scale=1 / 255,
        mean=(-0.1, 1e-7, 3.0),
        std=(0.1 + 0.2,),
        pad_value=0,
        layout="HWC",
        labels="-l.csv",
        shape=("x:3x8x8", "y:2"),
        batch_axis=("x=1", "y=none"),
        input=("-a=-1", "b=2"),
        ort_library=("./a b.so",),
        samples=5,
        order="shuffled",
        seed=3,
        partial="wrap",
    )
    values: dict[str, list[str]] = {}
    words = iter(whole.arguments())
    for word in words:
        name, equals, value = word.partition("=")
        values.setdefault(name, []).append(value if equals else next(words))
    fields_of = {f"--{item.name.replace('_', '-')}": item for item in fields(SampleOptions)}
    assert values.keys() == fields_of.keys()
    many = ("shape", "batch_axis", "input", "ort_library")
    read = {fields_of[name].name: found for name, found in values.items()}
    assert SampleOptions(**{name: found if name in many else found[0] for name, found in read.items()}) == whole
    assert SampleOptions(data="x.npy").arguments() == ["--data", "x.npy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0: expected a whole number from 1 on"),
        ({"batch_size": True}, "--batch-size True: expected a whole number from 1 on"),
        ({"samples": 0}, "--samples 0: expected a whole number from 1 on"),
        ({"samples": 1.5}, "--samples 1.5: expected a whole number"),
        ({"samples": True}, "--samples True: expected a whole number"),
        ({"samples": float("inf")}, "--samples inf: expected a whole number"),
        ({"seed": -1}, "--seed -1: expected a whole number from 0 on"),
        ({"resize_to": "x"}, "--resize-to x: expected a whole number"),
        ({"pad_value": 256}, "--pad-value 256: expected a whole number from 0 to 255"),
        ({"scale": "x"}, "--scale x: expected a number"),
        ({"mean": "1,x"}, "--mean 1,x: expected numbers joined by commas, such as 0.5,0.5,0.5"),
        ({"std": ()}, "--std (): expected numbers joined by commas"),
        ({"std": [None]}, "expected numbers joined by commas"),
        ({"order": 3}, "--order 3: expected text"),
        ({"data": None}, "--data None: expected text"),
        ({"shape": [3]}, "--shape 3: expected text"),
        ({"shape": 3}, "--shape 3: expected text"),
    ],
)
def test_a_value_of_another_kind_or_out_of_bounds_names_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SampleOptions(**{"data": "x", **options})


def test_choices_named_in_the_help_are_those_that_are_taken() -> None:
    said = {item.name: item.metadata["metavar"].split("|") for item in fields(SampleOptions)}
    assert {name: said[name] for name in CHOICES} == {name: list(choices) for name, choices in CHOICES.items()}
    assert (said["order"], said["partial"]) == (list(ORDERS), list(PARTIALS))
    assert {*KNOBS, "layout", "size"} == {item.name for item in fields(Preprocess)}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """l.npz: ten arrays without labels, and l.csv with one class for each."""
    np.savez(tmp_path / "l.npz", x=np.arange(40, dtype=np.float32).reshape(10, 4))
    (tmp_path / "l.csv").write_text("".join(f"{row},{row % 2 + 5}\n" for row in range(10)))
    return tmp_path


def test_a_file_of_labels_is_about_samples_of_any_kind(labelled: Path) -> None:
    options = SampleOptions(data=str(labelled / "l.npz"), labels=str(labelled / "l.csv"))
    assert options.open([ROW]).labels == (5, 6) * 5
    body = "import numpy as np\ndef load_data():\n    yield {'x': np.ones((2, 4), np.float32), 'labels': [8, 9]}\n"
    (labelled / "load.py").write_text(body)
    stream = replace(options, data=str(labelled / "load.py"), labels=None)
    assert stream.open([ROW]).labels == (8, 9)
    (labelled / "s.csv").write_text("batch 0 row 1,a\nbatch 0 row 0,b\n")
    assert replace(stream, labels=str(labelled / "s.csv")).open([ROW]).labels == (1, 0)


def test_texts_that_are_no_classes_are_left_to_a_metric_of_ones_own(labelled: Path) -> None:
    (labelled / "l.csv").write_text("".join(f"{row},{text}\n" for row, text in enumerate(["2024", "Fuji", *"x" * 8])))
    batches = SampleOptions(data=str(labelled / "l.npz"), labels=str(labelled / "l.csv")).open([ROW])
    assert batches.labels is None
    assert labels_of(batches, labelled / "l.csv", ["own.py:score"])["l.npz[1]"] == "Fuji"  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\n", r"l\.csv: no label for 'l\.npz\[1\]' and 8 more; add"),
        ("10,1\n", r"l\.csv:1: there is no sample '10'"),
    ],
)
def test_labels_that_do_not_fit_the_samples_are_refused(text: str, message: str, labelled: Path) -> None:
    (labelled / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        SampleOptions(data=str(labelled / "l.npz"), labels=str(labelled / "l.csv")).open([ROW])


def test_samples_that_are_not_used_need_no_label(labelled: Path) -> None:
    (labelled / "l.csv").write_text("".join(f"{row},3\n" for row in range(8)))
    options = SampleOptions(data=str(labelled / "l.npz"), labels=str(labelled / "l.csv"), batch_size=4, partial="drop")
    assert options.open([ROW]).labels == (3,) * 8


def test_a_part_is_spread_over_the_classes_that_a_file_says(labelled: Path) -> None:
    (labelled / "l.csv").write_text("".join(f"{row},{'rare' if row > 7 else 'x'}\n" for row in range(10)))
    options = SampleOptions(data=str(labelled / "l.npz"), labels=str(labelled / "l.csv"), samples=4)
    assert options.open([ROW]).sample_names == ("l.npz[2]", "l.npz[6]", "l.npz[8]", "l.npz[9]")
    assert replace(options, labels=None).open([ROW]).sample_names == tuple(f"l.npz[{row}]" for row in (1, 3, 6, 8))


def test_at_most_so_many_unless_it_is_said_how_many(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = SampleOptions(data=str(labelled / "l.npz"))
    assert [options.open([ROW], at_most=most).num_samples for most in (None, 4, 64)] == [10, 4, 10]
    assert replace(options, samples=6).open([ROW], at_most=4).num_samples == 6
    assert not caplog.records
    body = "import numpy as np\ndef load_data():\n    while True:\n        yield np.ones((2, 4), np.float32)\n"
    (labelled / "endless.py").write_text(body)
    assert SampleOptions(data=str(labelled / "endless.py")).open([ROW], at_most=5).num_samples == 5


def test_what_evaluates_is_what_calibrates_or_a_part_of_it_or_opened_alike(labelled: Path) -> None:
    np.save(labelled / "e.npy", np.ones((5, 4), np.float32))
    options = SampleOptions(data=str(labelled / "l.npz"), batch_size=4, partial="drop", order="shuffled")
    calibrates, evaluates = open_both(options, [ROW])
    assert calibrates is evaluates
    part = open_both(options, [ROW], eval_samples=3)[1]
    assert set(part.sample_names) < set(calibrates.sample_names)
    assert str(part.accounting()).endswith("1 batch of 4, last one padded with 1 repeat")
    other = open_both(replace(options, partial="error", batch_size=5), [ROW], eval_data=str(labelled / "e.npy"))
    assert [batches.num_samples for batches in other] == [10, 5]
    assert other[1].sample_names == tuple(f"e.npy[{row}]" for row in range(5))
    (labelled / "e.csv").write_text("".join(f"{row},1\n" for row in range(5)))
    said = replace(options, labels=str(labelled / "e.csv"))
    calibrates, evaluates = open_both(said, [ROW], eval_data=str(labelled / "e.npy"), eval_samples=4)
    assert (calibrates.labels, evaluates.labels) == (None, (1, 1, 1, 1))


def test_dynamic_axes_are_fixed_by_name_or_for_the_only_input() -> None:
    assert fix_shapes([IMAGE], ["3x640x320"])[0].shape == (3, 640, 320)
    assert [spec.shape for spec in fix_shapes([IMAGE, TOKENS], ["ids:32", "x:3X64x64"])] == [(3, 64, 64), (32,)]
    assert fix_shapes([InputSpec("a:b", F32, (None,))], ["a:b:4"])[0].shape == (4,)
    assert fix_shapes([IMAGE], []) == (IMAGE,)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("3x640", r"does not fit x: float32 .*; give all 3 sizes but the batch's"),
        ("4x640x640", r"does not fit x: .*; only axes written \? may"),
        ("1x3x640x640", "leave the batch out"),
        ("3x0x640", "does not fit x: "),
        ("3,640,640", "joined by x"),
        ("y:3x6x6", "no input 'y'; it has x"),
    ],
)
def test_a_shape_that_does_not_fit_says_why(shape: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fix_shapes([IMAGE], [shape])


def test_a_shape_without_a_name_is_ambiguous_for_several_inputs() -> None:
    with pytest.raises(ValueError, match="inputs x, ids; write INPUT:32"):
        fix_shapes([IMAGE, TOKENS], ["32"])


@pytest.mark.parametrize(
    ("shape", "layout", "made"),
    [
        ((3, 24, 32), None, (3, 24, 32)),
        ((24, 32, 3), None, (24, 32, 3)),
        ((1, 24, 32), None, (1, 24, 32)),
        ((24, 32, 1), None, (24, 32, 1)),
        ((3, 8, 3), "HWC", (3, 8, 3)),
    ],
)
def test_size_channels_and_layout_come_from_the_model(
    shape: tuple[int, ...], layout: str | None, made: tuple[int, ...]
) -> None:
    assert image_preprocess([InputSpec("x", F32, shape)], "0-1", layout=layout).shape == made


def test_knobs_change_the_preset() -> None:
    knobs = {"color": "BGR", "mean": (0.5, 0.25, 0.125), "scale": 0.5, "resize": "letterbox", "pad_value": 0}
    made = image_preprocess([InputSpec("x", F32, (3, 8, 8))], "imagenet", **knobs)
    assert (made.color, made.mean, made.scale, made.resize, made.pad_value) == (
        "BGR", (0.5, 0.25, 0.125), 0.5, "letterbox", 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([IMAGE], r"leaves its size open; fix it, for instance with --shape x:3x224x224"),
        ([TOKENS], "takes no images"),
        ([InputSpec("x", F32, (7, 8, 8))], "wants 7 channels"),
        ([IMAGE, TOKENS], "one input, the model has x, ids"),
    ],
)
def test_an_input_that_is_no_image_says_why(inputs: list[InputSpec], message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_preprocess(inputs, "imagenet")


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ValueError, match="imagenet, torchvision-<size>, yolo-letterbox, 0-1, -1-1, raw"):
        image_preprocess([InputSpec("x", F32, (3, 8, 8))], "image-net")


# --- the batch size that nobody asked for

ONE_OF_FOUR = InputSpec("x", np.dtype(np.float32), (3,), count=4)
ANY_NUMBER = InputSpec("x", np.dtype(np.float32), (3,))
BUILT_IN = "of 4, which the model has built in and TensorRT will use"


def loader(folder: Path, *sizes: int) -> str:
    folder.joinpath("load.py").write_text(
        f"import numpy as np\ndef load_data():\n    return [{{'x': np.ones((n, 3), 'f4') * n}} for n in {sizes}]\n"
    )
    return str(folder / "load.py")


@pytest.mark.parametrize(
    ("spec", "sizes", "size", "said"),
    [
        (ONE_OF_FOUR, (), 4, f"6 samples: 2 batches {BUILT_IN}, last one padded with 2 repeats"),
        (ONE_OF_FOUR, (2, 2, 2), 4, f"6 samples: 2 batches {BUILT_IN}, regrouped from batches of 2, last one padded"),
        (ANY_NUMBER, (), 8, "6 samples: 1 batch of 8, last one padded with 2 repeats"),
        (ANY_NUMBER, (2, 2, 1), 2, "5 samples: 3 batches of 2, as load.py gives them, last one padded with 1 repeat"),
        (
            ANY_NUMBER,
            (2, 3, 2),
            2,
            "7 samples: 4 batches of 2, as load.py gives them, regrouped from batches of 2 to 3",
        ),
        (ANY_NUMBER, (65,), 8, "65 samples: 9 batches of 8, regrouped from batches of 65, last one padded"),
    ],
)
def test_who_calibrates_without_a_batch_size_gets_the_one_that_tensorrt_will_use_and_is_told(
    tmp_path: Path, spec: InputSpec, sizes: tuple[int, ...], size: int, said: str
) -> None:
    np.save(tmp_path / "x.npy", np.ones((6, 3), np.float32))
    options = SampleOptions(data=loader(tmp_path, *sizes) if sizes else str(tmp_path / "x.npy"))
    batches = options.open([spec], calibrating=True)
    assert batches.batch_size == size
    assert {len(batch["x"]) for batch in batches} == {size}
    assert str(batches.accounting()).replace(f"{tmp_path}/", "").startswith(said)
    assert options.open([spec]).batch_size == 8  # to judge by, any size does
    asked = replace(options, batch_size=3).open([spec], calibrating=True)
    assert asked.batch_size == 3
    assert ("regrouped" in str(asked.accounting())) == bool(sizes)


def test_what_a_sweep_judges_by_comes_in_batches_of_eight_whatever_calibrates(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(18, dtype=np.float32).reshape(6, 3))
    batches, judged = open_both(SampleOptions(data=str(tmp_path / "x.npy"), partial="drop"), [ONE_OF_FOUR])
    assert (batches.batch_size, judged.batch_size) == (4, 8)
    assert judged.sample_names == batches.sample_names == tuple(f"x.npy[{row}]" for row in range(4))
    assert judged.source is batches.source
    options = SampleOptions(data=str(tmp_path / "x.npy"), batch_size=2)
    assert [made.batch_size for made in open_both(options, [ONE_OF_FOUR])] == [2, 2]
