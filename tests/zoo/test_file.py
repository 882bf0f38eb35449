from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trtcal.errors import BackendError, DataError
from trtcal.ranges.thresholds import spelt
from trtcal.zoo.file import Row, read_zoo

ROOT = Path(__file__).parents[2]


def read(tmp_path: Path, text: str) -> list[Row]:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    (tmp_path / "zoo.yaml").write_text(text)
    return read_zoo(tmp_path / "zoo.yaml")


def test_defaults_hold_for_every_row_that_does_not_say_otherwise(tmp_path: Path) -> None:
    one, two = read(
        tmp_path,
        "defaults: {data: photos, preset: imagenet, batch_sizes: [1, 2]}\n"
        "models:\n- model: a.onnx\n- {model: b.onnx, name: other, preset: null, data: 's3://b/x', accuracy: false}\n",
    )
    assert one == Row(
        name="a",
        model=str(tmp_path / "a.onnx"),
        data=str(tmp_path / "photos"),
        preset="imagenet",
        batch_sizes=(1, 2),
    )
    assert (two.name, two.preset, two.data, two.accuracy) == ("other", None, "s3://b/x", False)
    assert one.methods == spelt()


def test_the_example_is_read() -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    rows = read_zoo(ROOT / "examples" / "models.yaml")
    assert [row.name for row in rows] == ["resnet50", "efficientnet-mse", "recogniser"]
    assert rows[2].metric == f"{ROOT / 'examples' / 'score.py'}:characters"


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert [name for name in Row.__dataclass_fields__ if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "zoo.yaml: expected keys defaults and models, got nothing"),
        ("models: 3", "zoo.yaml: models: expected a list of rows, at least one, got 3"),
        ("models: []", "zoo.yaml: models: expected a list of rows, at least one, got a list"),
        ("model: []", "zoo.yaml: unknown key 'model'; the keys are defaults, models"),
        ("defaults: 3\nmodels: [{}]", "zoo.yaml: defaults: expected keys and values, got 3"),
        ("defaults: {model: a}\nmodels: [{}]", "zoo.yaml: defaults: unknown key 'model'; the keys are data, "),
        ("models: [x]", "zoo.yaml: models[1]: expected keys and values, got 'x'"),
        ("models: [{model: a.onnx}]", "zoo.yaml: models[1]: the key 'data' is missing"),
        ("models: [{data: a}]", "zoo.yaml: models[1]: the key 'model' is missing"),
        ("models: [{model: a, data: b, batchsize: 3}]", "zoo.yaml: models[1]: unknown key 'batchsize'; the keys are"),
        ("models: [{model: a, data: 3}]", "zoo.yaml: models[1] data: expected text (in quotes, if"),
        ("models: [{model: a, data: b, batch_size: x}]", "zoo.yaml: models[1] batch_size: expected a whole number"),
        ("models: [{model: a, data: b, batch_size: 0}]", "models[1] batch_size: expected a whole number from 1 on"),
        ("models: [{model: a, data: b, seeds: true}]", "models[1] seeds: expected a whole number, got True"),
        ("models: [{model: a, data: b, accuracy: 1}]", "models[1] accuracy: expected true or false, got 1"),
        ("models: [{model: a, data: b, orders: given}]", "models[1] orders: expected a list, got 'given'"),
        ("models: [{model: a, data: b, batch_sizes: [1, x]}]", "models[1] batch_sizes[2]: expected a whole number"),
        ("models: [{model: a, data: b, orders: [upwards]}]", "zoo.yaml: models[1]: unknown order 'upwards'; choose"),
        ("models: [{model: a, data: b, growths: [triple]}]", "zoo.yaml: models[1]: unknown growth rule 'triple'; ch"),
        ("models: [{model: a, data: b, methods: [kl]}]", "zoo.yaml: models[1]: unknown method 'kl'; choose"),
        ("models: [{model: a, data: b, name: ../x}]", "models[1] name: '../x' is to be a folder"),
        ("models: [{model: a, data: b, name: .}]", "models[1] name: '.' is to be a folder"),
        ("models: [{model: x/A, data: b}, {model: a, data: b}]", "models[2] name: 'a' is that of models[1] as well"),
        ("models:\n- {model: a, data: b, model: c}", "zoo.yaml:2: not YAML that can be used: key 'model' is there"),
        ("models: [", "zoo.yaml:1: not YAML that can be used: "),
        ("models: !!python/object/apply:os.system [ls]", "zoo.yaml:1: not YAML that can be used: could not determine"),
        ("models: [{? [a] : b}]", "zoo.yaml:1: not YAML that can be used: "),
        ("models: [{model: a, data: ''}]", "zoo.yaml: models[1] data: expected text, got an empty one"),
        ("models: [{model: a, data: b, name: Index.html}]", "models[1] name: 'Index.html' is a file of the page"),
        *((text, "zoo.yaml: not YAML that can be used: ") for text in ("!!map [x]", "!!set [x]", "!!int ''")),
        *((text, "zoo.yaml: not YAML that can be used: ") for text in ("!!bool x", "!!timestamp x", "[" * 9999)),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_row_and_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'trtcal[zoo]'")
    with pytest.raises(DataError, match=r"none.yaml: cannot be read: No such file"):
        read_zoo(tmp_path / "none.yaml")


def test_without_pyyaml_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BackendError, match=r"pip install 'trtcal\[zoo\]'"):
        read_zoo("zoo.yaml")
