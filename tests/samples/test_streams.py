from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtcal.errors import DataError, NonFiniteError
from trtcal.samples.batches import Batches, Stream
from trtcal.samples.streams import IterableSource, LoaderScript
from trtcal.spec import InputSpec

X = InputSpec("x", np.dtype("float32"), (2,))
IDS = InputSpec("ids", np.dtype("int64"), (2,))

DATA = np.arange(18, dtype=np.float32).reshape(9, 2)
GROUPS = [DATA[:3], DATA[3:5], DATA[5:]]


def source(items: Any, *inputs: InputSpec) -> IterableSource:
    return IterableSource(items, inputs=inputs or [X])


def whole(batches: Batches, name: str = "x") -> np.ndarray:
    return np.concatenate([batch[name][: batch.valid] for batch in batches])


FEEDS: dict[str, Callable[[np.ndarray], Any]] = {
    "dict": lambda array: {"x": array},
    "dict with labels": lambda array: {"x": array, "labels": array[:, 0].astype(int)},
    "dict with label": lambda array: {"x": array, "label": array[:, 0].astype(int).tolist()},
    "array": lambda array: array,
    "tuple": lambda array: (array, array[:, 0].astype(int)),
    "list": lambda array: [array, array[:, 0].astype(int).tolist()],
    "list of one": lambda array: [array],
    "pair with boxes": lambda array: (array, [{"boxes": 1}] * len(array)),
    "pair with scores": lambda array: (array, array[:, 0]),
    "pair with ragged lists": lambda array: (array, [[1, 2], *[[1]] * (len(array) - 1)]),
}


@pytest.mark.parametrize("form", FEEDS)
def test_every_form_of_feed_is_taken(form: str) -> None:
    stream = source([FEEDS[form](group) for group in GROUPS])
    assert isinstance(stream, Stream)
    batches = Batches(stream, 4)
    np.testing.assert_array_equal(whole(batches), DATA)
    labelled = form in ("dict with labels", "dict with label", "tuple", "list")
    assert batches.labels == (tuple(range(0, 18, 2)) if labelled else None)
    assert batches.sample_names[2:4] == ("batch 0 row 2", "batch 1 row 0")
    said = "9 samples: 3 batches of 4, regrouped from batches of 2 to 3, last one padded with 3 repeats"
    assert str(batches.accounting()) == said


def test_labels_that_are_an_input_are_no_labels() -> None:
    spec = InputSpec("labels", np.dtype("int64"), ())
    batches = Batches(source([{"labels": np.array([3, 4])}], spec), 2)
    assert whole(batches, "labels").tolist() == [3, 4]
    assert batches.labels is None


def test_several_inputs_come_by_name() -> None:
    feeds = [{"ids": np.ones((2, 2), np.int32), "x": np.zeros((2, 2))}]
    (batch,) = Batches(source(feeds, X, IDS), 2)
    assert [(name, str(array.dtype)) for name, array in batch.items()] == [("x", "float32"), ("ids", "int64")]


def test_the_key_is_of_the_values() -> None:
    key = Batches(source([DATA]), 3).key()
    assert key == Batches(source([DATA]), 4).key()
    assert key != Batches(source([DATA + 1]), 3).key()


def test_an_object_that_starts_anew_may_be_iterated_for_ever() -> None:
    class Loader:
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            return ({"x": group} for group in GROUPS)

    batches = Batches(source(Loader()), 2)
    np.testing.assert_array_equal(whole(batches), whole(batches))
    assert source(Loader()).describe() == "samples of a Loader"


@pytest.mark.parametrize("once", [lambda: iter(GROUPS), lambda: (g for g in GROUPS), lambda: map(abs, GROUPS)])
def test_what_can_be_iterated_once_only_is_refused(once: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="once only; pass what it was made from"):
        source(once())


def test_what_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(TypeError, match="int cannot be iterated"):
        source(3)


@pytest.mark.parametrize(
    ("feed", "inputs", "words"),
    [
        ({}, [X], "batch axes of length nothing"),
        ({"y": DATA}, [X], "sample 'samples of a list: batch 1 row 0' lacks 'x': it has 'y'"),
        ({"x": DATA, "y": DATA}, [X], "has 'y', which the model does not take"),
        ({"x": DATA, "ids": DATA[:3].astype(int)}, [X, IDS], r"batch 1: batch axes of length \{'x': 9, 'ids': 3\}"),
        ({"x": DATA[:0]}, [X], "batch 1: batch axes of length .*at least one row"),
        ({"x": np.float32(3)}, [X], "at least one row"),
        ({"x": DATA[0]}, [X], r"batch 1, input 'x': no batch axis in front of x: .*array\[None\]"),
        ({"x": DATA[:, :1]}, [X], r"batch 1 row 0', input 'x': shape \(1,\), expected \(2,\)"),
        ({"ids": DATA}, [IDS], "round and cast them yourself"),
        ({"x": [[1, 2], [3]]}, [X], "batch 1, input 'x': a list that is no array"),
        ({"x": object()}, [X], "batch 1"),
        (DATA, [X, IDS], "batch 1: a ndarray, the model takes 'ids', 'x': give dicts"),
        ((DATA, DATA, DATA), [X], r"batch 1: a tuple of 3, expected \(array, labels\)"),
        (None, [X], "batch 1"),
        ("text", [X], "batch 1"),
    ],
)
def test_a_feed_that_does_not_fit_is_named(feed: Any, inputs: list[InputSpec], words: str) -> None:
    good = {"x": DATA[:2], "ids": DATA[:2].astype(int)}
    first = {spec.name: good[spec.name] for spec in inputs}
    iterator = iter(Batches(source([first, feed], *inputs), 2))
    assert next(iterator).valid == 2
    with pytest.raises(DataError, match=words):
        next(iterator)


def test_inf_and_nan_are_named_with_their_row() -> None:
    broken = DATA[:3].copy()
    broken[1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="batch 1 row 1', input 'x': 1 of 2"):
        list(Batches(source([DATA, broken]), 4))


def test_what_a_loader_raises_is_told_with_its_batch() -> None:
    class Loader:
        def __iter__(self) -> Iterator[np.ndarray]:
            yield DATA
            raise KeyError("image_7")

    with pytest.raises(DataError, match="samples of a Loader: batch 1 raised KeyError: 'image_7'") as caught:
        list(Batches(source(Loader()), 3))
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_interruption_passes_as_it_is() -> None:
    class Loader:
        def __iter__(self) -> Iterator[np.ndarray]:
            yield DATA
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Batches(source(Loader()), 3))


# --- torch


def test_a_torch_dataloader_is_a_source() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(DATA), torch.arange(9))
    batches = Batches(source(torch.utils.data.DataLoader(data, batch_size=4)), None)
    assert [batch["x"].shape[0] for batch in batches] == [4, 4, 1]
    np.testing.assert_array_equal(whole(batches), DATA)
    assert batches.labels == tuple(range(9))
    rebatched = Batches(source(torch.utils.data.DataLoader(data, batch_size=4)), 3, samples=7, partial="wrap")
    assert [batch["x"].shape[0] for batch in rebatched] == [3, 3, 3]
    np.testing.assert_array_equal(whole(rebatched), DATA[:7])


def test_torch_dicts_and_tensors_are_feeds() -> None:
    torch = pytest.importorskip("torch")
    rows = [{"x": torch.from_numpy(row), "ids": torch.tensor([1, 2], dtype=torch.int32)} for row in DATA]
    loader = torch.utils.data.DataLoader(rows, batch_size=5)
    np.testing.assert_array_equal(whole(Batches(source(loader, X, IDS), 2)), DATA)
    needs_grad = torch.from_numpy(DATA.copy()).requires_grad_()
    np.testing.assert_array_equal(whole(Batches(source([needs_grad]), 2)), DATA)
    with pytest.raises(DataError, match="batch 0, input 'x': a Tensor that is no array"):
        list(Batches(source([torch.zeros(2, 2, dtype=torch.bfloat16)]), 2))


def test_a_dataset_that_fails_is_told() -> None:
    torch = pytest.importorskip("torch")

    class Failing:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise OSError("image_4.png is gone")
            return torch.zeros(2)

    with pytest.raises(DataError, match=r"batch 2 raised OSError: image_4\.png is gone"):
        list(Batches(source(torch.utils.data.DataLoader(Failing(), batch_size=2)), 2))


# --- scripts

SCRIPT = """
import numpy as np
calls = 0
def load_data():
    global calls
    calls += 1
    for start in (0, 3):
        yield {"x": np.full((3, 2), start, np.float32)}
def as_list():
    return [{"x": np.ones((2, 2), np.float32)}]
def nothing():
    return None
def fails():
    yield {"x": np.ones((2, 2), np.float32)}
    raise ValueError("out of images")
number = 3
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "my loader.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_feeds_by_load_data_or_a_named_function(script: Path) -> None:
    stream = LoaderScript(script, inputs=[X])
    assert isinstance(stream, Stream)
    assert whole(Batches(stream, 2))[:, 0].tolist() == [0, 0, 0, 3, 3, 3]
    assert stream.describe() == str(script)
    assert whole(Batches(LoaderScript(f"{script}:as_list", inputs=[X]), 2)).tolist() == [[1, 1]] * 2


def test_a_script_is_imported_once_and_called_for_every_iteration(script: Path) -> None:
    batches = Batches(LoaderScript(str(script), inputs=[X]), 2)
    np.testing.assert_array_equal(whole(batches), whole(batches))
    assert sys.modules["trtcal_script_my loader"].calls >= 2


def test_a_script_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_loader.py").write_text("VALUE = 5\n")
    (tmp_path / "loader.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport numpy as np\n"
        "from beside_the_loader import VALUE\n@dataclass\nclass C:\n    v: int = VALUE\n"
        "def load_data():\n    return [np.full((1, 2), C().v)]\n"
    )
    path = list(sys.path)
    assert whole(Batches(LoaderScript(tmp_path / "loader.py", inputs=[X]), 1)).tolist() == [[5, 5]]
    assert sys.path == path


def test_a_script_named_like_a_module_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("import numpy as np\ndef load_data():\n    return [np.zeros((1, 2))]\n")
    before = sys.modules.get("random")
    assert len(whole(Batches(LoaderScript(tmp_path / "random.py", inputs=[X]), 1))) == 1
    assert sys.modules.get("random") is before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":nothing", r"my loader\.py:nothing: batch 0 raised TypeError: .*not iterable"),
        (":fails", r"my loader\.py:fails: batch 1 raised ValueError: out of images"),
        (":gone", "no function 'gone'; it has load_data, as_list, nothing, fails"),
        (":number", "no function 'number'"),
    ],
)
def test_a_script_that_does_not_deliver_is_told(name: str, words: str, script: Path) -> None:
    with pytest.raises(DataError, match=words):
        list(Batches(LoaderScript(f"{script}{name}", inputs=[X]), 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("def load_data(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("", "no function 'load_data'; it has none"),
    ],
)
def test_a_script_that_cannot_be_imported_is_told(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "broken_loader.py").write_text(text)
    with pytest.raises(DataError, match=rf"broken_loader\.py: .*{words}"):
        LoaderScript(tmp_path / "broken_loader.py", inputs=[X])


def test_a_script_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.py: no such file"):
        LoaderScript(tmp_path / "gone.py", inputs=[X])
    with pytest.raises(ValueError, match=r"file\.py:function"):
        LoaderScript("loader.txt", inputs=[X])
