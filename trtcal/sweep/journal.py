"""Judgements of a sweep, kept as they are made, so that an interrupted sweep makes none of them twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from trtcal.files.atomic import write_bytes
from trtcal.sweep import store as sweepfile
from trtcal.sweep.trials import Judgement

logger = logging.getLogger(__name__)


class Journal:
    """A file of judgements under a key that says of what and by what they are.

    ``known``: bytes of the thresholds (float32, in the order of the tensors) -> their judgements, on more samples each;
    what the file had under this key where ``resume`` is set, else nothing. The file begins anew with these.
    OutputError if it cannot be written.
    """

    def __init__(self, path: str | Path, key: str, *, resume: bool) -> None:
        self.path = Path(path)
        self.known: dict[bytes, list[Judgement]] = {}
        content = first = json.dumps({"key": key}).encode() + b"\n"
        if resume and self.path.is_file():
            old = self.path.read_bytes()
            if old.startswith(first):
                content = old[: old.rfind(b"\n") + 1]  # a line that was being written is not taken
                for amax, judgement in sweepfile.read_judgements(content[len(first) :]):
                    self.known.setdefault(amax, []).append(judgement)
        write_bytes(self.path, content)

    @property
    def done(self) -> dict[bytes, Judgement]:
        """Bytes of the thresholds -> the last judgement of them."""
        return {amax: judgements[-1] for amax, judgements in self.known.items()}

    def note(self, amax: np.ndarray, judgement: Judgement) -> None:
        """Add one to the file."""
        try:
            with open(self.path, "ab") as file:
                file.write(sweepfile.judgement_line(amax, judgement))
        except OSError as error:  # a full disk ends the convenience, not the sweep
            logger.warning("%s: cannot be written: %s; an interruption will cost judgements", self.path, error.strerror)
