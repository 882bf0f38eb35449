"""From what a model says of its inputs, and what the user adds, to how samples must look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtcal.errors import DataError
from trtcal.samples.preprocess import Preprocess, preset
from trtcal.spec import InputSpec


def fix_shapes(inputs: Sequence[InputSpec], shapes: Sequence[str]) -> tuple[InputSpec, ...]:
    """Inputs with the axes that ``[INPUT:]SIZES`` fixes, sizes without the batch axis and joined by "x".

    Raises ValueError for a text that is no shape, a name that is no input, or sizes that contradict the model.
    """
    by_name = {spec.name: spec for spec in inputs}
    for text in shapes:
        name, _, sizes_text = text.rpartition(":")  # names may hold colons, sizes never do
        if not name and len(inputs) > 1:
            raise ValueError(f"--shape {text}: the model has inputs {', '.join(by_name)}; write INPUT:{text}")
        name = name or inputs[0].name
        if name not in by_name:
            raise ValueError(f"--shape {text}: the model has no input {name!r}; it has {', '.join(by_name)}")
        spec = by_name[name]
        try:
            sizes = tuple(int(size) for size in sizes_text.lower().split("x"))
        except ValueError:
            raise ValueError(f"--shape {text}: expected sizes joined by x, such as 3x224x224") from None
        if len(sizes) == len(spec.shape) + 1:
            raise ValueError(
                f"--shape {text}: {spec} has {len(spec.shape)} axes besides the batch; leave the batch out"
            )
        if len(sizes) != len(spec.shape):
            raise ValueError(f"--shape {text}: does not fit {spec}; give all {len(spec.shape)} sizes but the batch's")
        if min(sizes) < 1 or any(known not in (None, size) for size, known in zip(sizes, spec.shape, strict=True)):
            raise ValueError(f"--shape {text}: does not fit {spec}; only axes written ? may be given another size")
        by_name[name] = replace(spec, shape=sizes)
    return tuple(by_name.values())


def image_preprocess(inputs: Sequence[InputSpec], name: str, *, layout: str | None = None, **knobs: Any) -> Preprocess:
    """Preset for the model's one image input, whose shape gives size and channels; ``knobs`` replace its fields.

    Raises DataError where the input is no image or leaves its size open, ValueError for wrong knobs.
    """
    if len(inputs) != 1:
        raise DataError(
            f"a preset prepares images for one input, the model has {', '.join(spec.name for spec in inputs)}; "
            f"prepare them as .npz files with these names"
        )
    spec = inputs[0]
    if len(spec.shape) != 3:
        raise DataError(f"{spec} takes no images: a preset needs the axes (N, C, H, W) or (N, H, W, C)")
    if layout is None:
        layout = "HWC" if spec.shape[0] not in (1, 3) and spec.shape[2] in (1, 3) else "CHW"
    if layout not in ("CHW", "HWC"):
        raise ValueError(f"layout is CHW or HWC, got {layout!r}")
    channels, height, width = spec.shape if layout == "CHW" else (spec.shape[2], *spec.shape[:2])
    if height is None or width is None or channels is None:
        raise DataError(f"{spec} leaves its size open; fix it, for instance with --shape {spec.name}:3x224x224")
    if channels not in (1, 3):
        raise DataError(f"{spec} wants {channels} channels; images have 1 or 3, so prepare arrays instead")
    return preset(name, size=(height, width), channels=channels, layout=layout, **knobs)  # type: ignore[arg-type]
