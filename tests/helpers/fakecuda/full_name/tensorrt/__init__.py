"""The bindings under the name that they have where all of TensorRT is installed."""

from tensorrt_bindings import *
from tensorrt_bindings import __version__
