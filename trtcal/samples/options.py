"""The one door to samples, from options to batches for a model; every command, a sweep, a zoo and a build share it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from trtcal.errors import DataError
from trtcal.files.settings import flag, is_joined, option, take_values

if TYPE_CHECKING:  # a command line reads the options before anything heavy is wanted
    from trtcal.samples.batches import Batches, Samples, Stream
    from trtcal.samples.preprocess import Preprocess
    from trtcal.spec import InputSpec


IMAGES = "Image preprocessing"
BATCH_SIZE = 8
MOST_OF_A_SCRIPT = 64  # samples in a batch; what is larger is a set of samples rather than a batch


def _option(text: str, metavar: str, *, image: bool = False, **more: Any) -> Any:
    return option(text, metavar, group=IMAGES if image else "Samples", **more)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which samples a model is fed, how they look and how they come: ``open`` makes batches of them.

    The fields are the options of every command, ``resize_to`` as ``--resize-to``, and keys of a zoo's row. Numbers and
    lists may be given as text, ``mean="0.5,0.5,0.5"``. ValueError for a value of another kind or out of bounds.
    """

    data: str = _option(
        "Folder of images, .npy or .npz file or folder of them (first axis: samples), list.txt that names some of "
        "their samples, one path a line, or script.py[:function] with a "
        "function load_data as Polygraphy takes it, which is run as your own code. Folders and files may be URLs such "
        "as s3://bucket/photos (extra remote).",
        "PATH",
        default=MISSING,
    )
    batch_size: int | None = _option(
        "Samples per batch; entropy calibration depends on it.",
        "N",
        least=1,
        otherwise="8; to calibrate, what the model has built in, or else a script's own batches",
    )
    preset: str | None = _option(
        "How the model wants its images: imagenet, torchvision-SIZE, yolo-letterbox, 0-1, -1-1 or raw; or V1, V1MS or "
        "V2 of NVIDIA's build_engine.py. Images are always brought to the model's height and width. Arrays are fed as "
        "they are: for them there is raw alone, which says that those of uint8 are meant for a floating-point input.",
        "NAME",
        image=True,
    )
    resize: str | None = _option(
        "Change the preset: how images get their size.", "shorter|stretch|letterbox|none", image=True
    )
    resize_to: int | None = _option("Length of the shorter side before the crop.", "N", least=1, image=True)
    crop: str | None = _option("What is cut out after resizing.", "center|none", image=True)
    interpolation: str | None = _option("Filter for resizing.", "bilinear|bicubic|nearest|lanczos|box", image=True)
    color: str | None = _option("Order of the channels; L is grey.", "RGB|BGR|L", image=True)
    scale: float | None = _option("Factor for pixels 0..255, before mean and std.", "S", image=True)
    mean: tuple[float, ...] | None = _option("Subtracted, per channel as it is fed.", "M[,M,M]", image=True)
    std: tuple[float, ...] | None = _option("Divided by, per channel as it is fed.", "S[,S,S]", image=True)
    pad_value: int | None = _option("Pixel that fills a letterbox.", "N", least=0, most=255, image=True)
    layout: str | None = _option("Axis order, where the model's shape leaves it open.", "CHW|HWC", image=True)
    labels: str | None = _option(
        "Rows sample,label; samples of one .npy or .npz file also by row number. Without it: class folders of images, "
        "or the array `labels` of an .npz file.",
        "FILE.csv",
    )
    shape: tuple[str, ...] = _option(
        "Fix dynamic axes, without the batch axis: 3x640x640 or x:3x640x640. Repeatable.",
        "[INPUT:]SIZES",
        default=(),
    )
    batch_axis: tuple[str, ...] = _option(
        "Which axis of an input counts samples, where its file does not tell: a number from 0 on, or none if a sample "
        "is one whole input. Repeatable.",
        "INPUT=AXIS",
        default=(),
    )
    input: tuple[str, ...] = _option(
        "What an input always is, and no sample gives: sr=16000, or mask=FILE.npy. Repeatable.",
        "INPUT=VALUE",
        default=(),
    )
    ort_library: tuple[str, ...] = option(
        "A library of custom operators to register with ONNX Runtime, for a model that has them. Repeatable.",
        "FILE",
        group="Model",
        default=(),
    )
    samples: int | None = _option(
        "Use so many samples, spread over all of them and over their classes; of a script, the first.",
        "N",
        least=1,
        otherwise="all",
    )
    order: str = _option("Order of the samples.", "given|sorted|shuffled", default="given")
    seed: int = _option("Seed of --order shuffled.", "N", default=0, least=0, otherwise="0")
    partial: str = _option("What becomes of a last batch that is not full.", "pad|wrap|drop|error", default="pad")

    def __post_init__(self) -> None:
        take_values(self, SampleOptions)

    def open(self, inputs: Sequence[InputSpec], *, at_most: int | None = None, calibrating: bool = False) -> Batches:
        """The model's inputs -> batches for it; ``at_most`` so many samples, unless ``samples`` says how many.

        Where nobody has said ``batch_size``, it is 8; for ``calibrating`` it is that which TensorRT will use: the one
        that the model has built in, or else that of a script's first batch, up to 64. The inputs are those of the
        model that is fed as ``batch_axis`` and ``input`` say: see `trtcal.model.open.Model.asked`.

        Raises DataError where data, inputs and options do not go together, ValueError for a choice that is none.
        """
        from trtcal.samples.batches import Batches, Samples
        from trtcal.samples.labels import classes_of, refuse_unlabelled
        from trtcal.samples.listed import Listed
        from trtcal.samples.sources import open_source

        inputs = fix_shapes(inputs, self.shape)
        prepare = self._preprocess(inputs)
        if self.preset == "raw":
            inputs = [replace(spec, pixels=True) for spec in inputs]
        source = open_source(self.data, inputs=inputs, preprocess=prepare)
        samples, classes = self.samples, None
        if samples is None and at_most is not None:
            samples = min(at_most, len(source)) if isinstance(source, Samples) else at_most
        if self.labels is not None and isinstance(source, Samples):
            every = [source.name(index) for index in range(len(source))]
            classes = classes_of(self.labels, every, part=isinstance(source, Listed))
        size, size_from = self._batch_size(inputs, source) if calibrating else (self.batch_size or BATCH_SIZE, "")
        batches = Batches(
            source,
            size,
            order=self.order,  # type: ignore[arg-type]
            seed=self.seed,
            samples=samples,
            partial=self.partial,  # type: ignore[arg-type]
            labels=classes,
            size_from=size_from,
        )
        if self.labels is not None:
            names = batches.sample_names
            if classes is None:  # of a stream, names are known when it has been run through
                classes = classes_of(self.labels, names)
                batches = batches.labelled(classes)
            refuse_unlabelled(self.labels, names, classes)
        return batches

    def arguments(self) -> list[str]:
        """Nothing -> the options of a command line that make these; those at their defaults are left out.

        URLs are without passwords and signatures, see `trtcal.files.remote.shown`.
        """
        found: list[str] = []
        for item in fields(SampleOptions):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            several = value if isinstance(value, tuple) else (value,)
            texts = [_text(one) for one in several]
            for text in [",".join(texts)] if is_joined(item) else texts:
                found += [f"{flag(item.name)}={text}"] if text.startswith("-") else [flag(item.name), text]
        return found

    def _batch_size(self, inputs: Sequence[InputSpec], source: Samples | Stream) -> tuple[int, str]:
        """How many samples are in a batch that calibrates, and words for why, if nobody has said how many."""
        if self.batch_size is not None:
            return self.batch_size, ""
        from trtcal.samples.streams import LoaderScript
        from trtcal.spec import built_in_batch_size

        built_in = built_in_batch_size(inputs)
        if built_in is not None:
            return built_in, "which the model has built in and TensorRT will use"
        if isinstance(source, LoaderScript):
            first: Sequence[Any] = []
            with suppress(DataError):  # which is said where the samples are read, after what is wrong with the options
                first = next(source.blocks(), [])
            if 0 < len(first) <= MOST_OF_A_SCRIPT:
                return len(first), f"as {source.describe()} gives them"
        return BATCH_SIZE, ""

    def _preprocess(self, inputs: Sequence[InputSpec]) -> Preprocess | None:
        from trtcal.samples.sources import holds_arrays

        changes = {name: getattr(self, name) for name in KNOBS if getattr(self, name) is not None}
        if self.preset is None:
            if changes or self.layout is not None:
                raise ValueError(f"{flag(next(iter(changes), 'layout'))} changes a preset; name one with --preset")
            return None
        if self.preset == "raw" and not changes and self.layout is None and holds_arrays(self.data):
            return None  # that is what arrays are anyway
        return image_preprocess(inputs, self.preset, layout=self.layout, **changes)


def _text(value: str | float) -> str:
    from trtcal.files.remote import is_url, shown

    if isinstance(value, float):
        return repr(value)
    return shown(str(value)) if is_url(str(value)) else str(value)


KNOBS = tuple(
    item.name
    for item in fields(SampleOptions)
    if item.metadata["group"] == IMAGES and item.name not in ("preset", "layout")
)
"""The fields that change a preset, named as those of `Preprocess`."""


def open_both(
    options: SampleOptions,
    inputs: Sequence[InputSpec],
    eval_data: str | None = None,
    eval_samples: int | None = None,
    *,
    at_most: int | None = None,
) -> tuple[Batches, Batches]:
    """Options, and what else to evaluate on -> batches to calibrate with, and batches to evaluate on.

    ``eval_data`` is opened with the same options, and the labels are then those of its samples; without it, the
    calibration samples serve. Of either, ``eval_samples`` so many, spread over them; of all of them ``at_most`` so many
    where the options do not say how many. An evaluation leaves no sample
    out and takes none twice, so its last batch is padded, whatever ``partial`` says of those that calibrate.
    """
    if eval_data is None:
        batches = options.open(inputs, at_most=at_most, calibrating=True)
        usual = options.batch_size is not None or batches.batch_size == BATCH_SIZE
        judged = batches if usual else batches.in_batches_of(BATCH_SIZE)
        return batches, judged if eval_samples is None else judged.part(eval_samples)
    evaluated = replace(options, data=eval_data, samples=eval_samples, order="given", partial="pad")
    calibrating = replace(options, labels=None).open(inputs, at_most=at_most, calibrating=True)
    return calibrating, evaluated.open(inputs, at_most=at_most)


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
    from trtcal.samples.preprocess import preset

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
