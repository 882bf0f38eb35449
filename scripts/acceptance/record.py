"""The record of a run: one JSON file, rewritten whole after every step, and the page made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acceptance.findings import NOT_MEASURED
from trtcal.files.atomic import write_bytes

_NAMES = {"error": "**error**", "crashed": "**crashed**", "timed out": "**timed out**", "differs": "**differs**"}


class Record:
    """``<stem>.json`` and ``<stem>.md`` in a folder, complete at every moment."""

    def __init__(self, folder: Path, stem: str, head: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.page = folder / f"{stem}.json", folder / f"{stem}.md"
        self.data: dict[str, Any] = {**head, "steps": {}}

    def put(self, step: str, result: dict[str, Any]) -> None:
        """A step's result so far -> both files, each replaced in one piece."""
        self.data["steps"][step] = result
        self.save()

    def save(self) -> None:
        """Write both files."""
        text = json.dumps(self.data, indent=1, ensure_ascii=False, default=str)
        write_bytes(self.json, (text + "\n").encode())
        write_bytes(self.page, ("\n".join(markdown(self.data)) + "\n").encode())


def markdown(data: dict[str, Any]) -> Iterator[str]:
    """A record -> lines of its page."""
    gpu = data.get("gpu") or {}
    yield f"# GPU acceptance, {data['date']}"
    yield ""
    if data["dry_run"]:
        yield (
            "**Dry run on test doubles** "
            f"({', '.join(data['doubles'])}): nothing here was measured on a GPU or says anything about TensorRT."
        )
    else:
        yield f"TensorRT {data['tensorrt']}, {gpu.get('name')}, driver {gpu.get('driver')}, CUDA {gpu.get('cuda')}."
    if data.get("error"):
        yield f"\n**{data['error']}**"
    yield ""
    yield "| step | outcome | seconds | asks |"
    yield "|---|---|---|---|"
    for name, step in data["steps"].items():
        counts = ", ".join(f"{number} {word}" for word, number in _counted(step).items() if word != step["status"])
        outcome = _NAMES.get(step["status"], step["status"]) + (f" ({counts})" if counts else "")
        yield f"| {name} | {outcome} | {step.get('seconds', '')} | {_cell(step['what'])} |"
    for name, step in data["steps"].items():
        yield from ["", f"## {name}", ""]
        if step.get("error"):
            yield from ["```text", *step["error"].splitlines()[-15:], "```", ""]
        if step["findings"]:
            yield "| question | verdict | got | expected |"
            yield "|---|---|---|---|"
        for finding in step["findings"]:
            verdict = _NAMES.get(finding["verdict"], finding["verdict"])
            cells = finding["question"], verdict, finding["got"], finding.get("expected", "")
            yield f"| {' | '.join(map(_cell, cells))} |"
    if any(step["status"] == NOT_MEASURED for step in data["steps"].values()):
        yield ""
        yield f'"{NOT_MEASURED}": test doubles answered, whose decisions are not TensorRT\'s.'


def _counted(step: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in step["findings"]:
        counts[finding["verdict"]] = counts.get(finding["verdict"], 0) + 1
    return counts


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 160 else f"{text[:157]}..."
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
