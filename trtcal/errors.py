"""Every error trtcal raises on purpose.

::

    TrtcalError
    ├── DataError            a sample, a label or a loader cannot be used
    │   └── NonFiniteError   inf or nan, in a sample or in an activation
    ├── ModelError           the ONNX file cannot be read, run or made to take this batch
    ├── CacheError           a calibration cache or another file of ranges
    │   ├── CacheFormatError its text is not in the format it claims
    │   └── NoScaleError     it has no scale for a tensor; a KeyError, too
    ├── StatsError           a file of activation statistics, or statistics that do not add up
    ├── OutputError          a result cannot be written
    ├── SettingError         a method or growth rule that there is not; a ValueError, too
    └── BackendError         TensorRT, CUDA or a device is missing, refuses or fails

Where Python has a fitting exception of its own for a wrong *argument* (``ValueError``,
``TypeError``), that one is raised: a caller's mistake is not a broken file. A setting that people
spell, and that none of the choices is, is both.
"""

from __future__ import annotations


class TrtcalError(Exception):
    """Base of every error that trtcal raises on purpose."""


class DataError(TrtcalError):
    """A sample, a label file or a loader that cannot be used; names the file or the sample."""


class NonFiniteError(DataError):
    """An inf or nan; names the sample and the first tensor that carries it."""


class ModelError(TrtcalError):
    """An ONNX model that cannot be read, run or made to take the batch; names the file or tensor."""


class CacheError(TrtcalError):
    """A calibration cache that cannot be used for what was asked."""


class CacheFormatError(CacheError):
    """Text that is not in the format it claims; names the file and the line."""


class NoScaleError(CacheError, KeyError):
    """A tensor that a cache has no scale for; names it, and the one that is spelt most like it."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # a KeyError's is the repr of its message


class StatsError(TrtcalError):
    """A file of activation statistics that cannot be read, or statistics that do not belong together."""


class OutputError(TrtcalError):
    """A result that cannot be written; names the path and the cause."""


class SettingError(TrtcalError, ValueError):
    """A method, growth rule or order that is none of the choices, which it names."""


class BackendError(TrtcalError):
    """TensorRT, CUDA or a device that is missing, refuses or fails."""
