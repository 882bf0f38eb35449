"""The file of a zoo: YAML in, its rows out; the only file that knows PyYAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from trtcal.errors import BackendError, DataError
from trtcal.files.remote import is_url
from trtcal.samples.options import SampleOptions
from trtcal.sweep.plan import SweepPlan

PATHS = ("model", "data", "labels", "eval_data", "ort_library")  # keys of files and folders

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = ("index.html", "zoo.json", "zoo.csv")  # beside the folders of the rows


@dataclass(frozen=True, kw_only=True)
class Row(SweepPlan, SampleOptions):
    """A model of the zoo, its samples and what to do with it; the fields are the keys of its row.

    ``method`` makes the cache; the plan is that of a sweep, which an empty ``batch_sizes`` leaves out, and of the
    cache's evaluation. No ``methods`` stand for each, with its default parameter.
    """

    name: str
    model: str
    method: str = "entropy"
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    growths: tuple[str, ...] = ("double",)
    seeds: int = 3

    def __post_init__(self) -> None:
        from trtcal.ranges.thresholds import spelt

        if not self.methods:
            object.__setattr__(self, "methods", spelt())
        SampleOptions.__post_init__(self)
        SweepPlan.__post_init__(self)


def read_zoo(path: str | os.PathLike[str]) -> list[Row]:
    """YAML file with ``models``, a list of rows, and perhaps ``defaults`` for all of them -> the rows.

    Paths are relative to the file. DataError, with file, row and key, for what is missing, unknown or of a wrong
    type; BackendError where PyYAML is missing.
    """
    content = _yaml(path)
    where = os.fspath(path)
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected keys defaults and models, got {_kind(content)}")
    _refuse_unknown(where, content, ("defaults", "models"))
    defaults, models = content.get("defaults", {}), content.get("models")
    if not isinstance(defaults, dict):
        raise DataError(f"{where}: defaults: expected keys and values, got {_kind(defaults)}")
    if not isinstance(models, list) or not models:
        raise DataError(f"{where}: models: expected a list of rows, at least one, got {_kind(models)}")
    rows = [_row(where, number, values, defaults) for number, values in enumerate(models, 1)]
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        if row.name.lower() in seen:  # on some machines, names of folders differ by more than case
            raise DataError(
                f"{where}: models[{number}] name: {row.name!r} is that of models[{seen[row.name.lower()]}] as well; "
                f"give each a name of its own"
            )
        seen[row.name.lower()] = number
    return rows


def _yaml(path: str | os.PathLike[str]) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise BackendError("PyYAML is not installed: pip install 'trtcal[zoo]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses what PyYAML takes in silence: a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in seen:
                    problem = f"key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        with open(path, "rb") as file:
            return yaml.load(file, Loader)
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
    except Exception as error:  # of a tag that does not go with its value, PyYAML 6 raises whatever comes
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{os.fspath(path)}{line}: not YAML that can be used: {problem}") from error


def _row(where: str, number: int, values: object, defaults: Mapping[str, Any]) -> Row:
    at = f"{where}: models[{number}]"
    if not isinstance(values, dict):
        raise DataError(f"{at}: expected keys and values, got {_kind(values)}")
    known = [item.name for item in fields(Row)]
    _refuse_unknown(f"{where}: defaults", defaults, [name for name in known if name not in ("name", "model")])
    _refuse_unknown(at, values, known)
    merged = {**defaults, **values}
    for name in ("model", "data"):
        if name not in merged:
            raise DataError(f"{at}: the key {name!r} is missing; it names the {name} of the row")
    merged.setdefault("name", Path(str(merged["model"])).stem)
    row: dict[str, Any] = {}
    for item in fields(Row):
        if item.name in merged:
            least = item.metadata.get("least", 1)  # of Row's own numbers, every one
            row[item.name] = _value(f"{at} {item.name}", str(item.type), merged[item.name], least)
        else:
            assert item.default is not MISSING
    if not _NAME.fullmatch(row["name"]):
        raise DataError(f"{at} name: {row['name']!r} is to be a folder: letters, digits, '.', '_' and '-' alone")
    if row["name"].lower() in _TAKEN:
        raise DataError(f"{at} name: {row['name']!r} is a file of the page; give the row another name")
    base = Path(where).parent
    for name in PATHS:
        if isinstance(row.get(name), tuple):
            row[name] = tuple(str(base / file) for file in row[name])
        elif row.get(name) is not None and not is_url(row[name]):
            row[name] = str(base / row[name])
    if ".py:" in row.get("metric", ""):
        row["metric"] = str(base / row["metric"])
    try:
        return Row(**row)
    except ValueError as error:
        raise DataError(f"{at}: {error}") from error


def _value(at: str, kind: str, value: object, least: int | None = None) -> Any:
    """A value of the file -> that of the field, whose type is one of those of :class:`Row`."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple"):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        if not isinstance(value, list):
            raise DataError(f"{at}: expected a list, got {_kind(value)}")
        return tuple(_value(f"{at}[{number}]", inner, item, least) for number, item in enumerate(value, 1))
    wanted: tuple[type, ...] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}[kind]
    if type(value) not in wanted:
        raise DataError(f"{at}: expected {_WORDS[kind]}, got {_kind(value)}")
    if value == "":
        raise DataError(f"{at}: expected text, got an empty one; leave the key out")
    if kind == "int" and least is not None and (not isinstance(value, int) or value < least):
        raise DataError(f"{at}: expected a whole number from {least} on, got {value}")
    return value


_WORDS = {
    "str": "text (in quotes, if it looks like a number)",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
}


def _refuse_unknown(at: str, values: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            raise DataError(f"{at}: unknown key {key!r}; the keys are {', '.join(known)}")


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "keys and values" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"{value!r:.60}"
