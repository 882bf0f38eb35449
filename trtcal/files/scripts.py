"""A function out of a user's Python file."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from trtcal.errors import DataError

_PREFIX = "trtcal_script_"  # of a name of its own, so that data.py or random.py beside the file shadow nothing


def loaded() -> list[ModuleType]:
    """The modules that :func:`load_function` made of files; a process that has not called it cannot import them."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX)]


def load_function(spec: str, default: str | None = None) -> Callable[..., Any]:
    """``"file.py:function"`` -> the function; ``"file.py"`` -> the one called ``default``, if that is given.

    The file may import what lies beside it. DataError if it is missing, fails to import or has no such
    function; ValueError if ``spec`` has another form.
    """
    match = re.fullmatch(r"(.+\.py)(?::(\w+))?", spec)
    name = match and (match[2] or default)
    if match is None or not name:
        raise ValueError(f"expected {'file.py or ' if default else ''}file.py:function, got {spec!r}")
    path = Path(match[1])
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    module_spec = spec_from_file_location(f"{_PREFIX}{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = module_from_spec(module_spec)
    # dataclasses and pickle, thus worker processes, look the module up by its name.
    sys.modules[module_spec.name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_spec.name, None)
        raise DataError(f"{path}: importing it raised {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(ValueError):  # the script may have set the path anew
            sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(f"{path}: has no function {name!r}; it has {', '.join(there) or 'none'}")
    return function  # type: ignore[no-any-return]
