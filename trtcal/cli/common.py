"""What the commands share: the options that describe samples, and how lines reach people."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trtcal.files import terminal

if TYPE_CHECKING:
    from trtcal.passes.executor import Executor
    from trtcal.samples.batches import Batches
    from trtcal.spec import InputSpec

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The floating-point model.")]
Cache = Annotated[
    Path,
    typer.Option(
        "--cache", metavar="FILE", help="A calibration cache, or ranges in another format.", show_default=False
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|OPTYPE|PATTERN",
        help="Layers that stay in float: name, op type or output, or a pattern such as '/head/*'. Repeatable.",
        show_default=False,
    ),
]
Placement = Annotated[
    str,
    typer.Option(
        metavar="tensorrt|all",
        help="What is INT8: as TensorRT 10 and 11 want it in a Q/DQ model, or as TensorRT 8 to 10 do with a cache.",
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Samples run at once.", show_default="one per core; on Ray, per CPU of a task"),
]
OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Work on Ray (extra ray): the cluster in RAY_ADDRESS, one that runs here, or a local one for this run.",
        rich_help_panel="Ray",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on this Ray cluster, such as ray.example:6379 or auto.",
        show_default=False,
        rich_help_panel="Ray",
    ),
]
RayCpus = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="CPUs that a task takes; it runs as many samples at once.",
        show_default="1",
        rich_help_panel="Ray",
    ),
]


@contextmanager
def executor_for(
    workers: int | None, ray: bool = False, address: str | None = None, cpus: float | None = None
) -> Iterator[Executor]:
    """The options --workers and --ray... -> where the work runs, while the block lasts."""
    if not ray and address is None:
        if cpus is not None:
            raise ValueError("--ray-cpus says what a task on Ray takes; it goes with --ray or --ray-address")
        from trtcal.passes.executor import Here

        yield Here(workers)
        return
    from trtcal.cluster.executor import RayExecutor
    from trtcal.cluster.ray_cluster import Cluster

    with Cluster(address, cpus=cpus or 1) as cluster:
        yield RayExecutor(cluster, workers)


def _samples(
    inputs: tuple[InputSpec, ...],
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Folder of images, .npy or .npz file or folder of them (first axis: samples), "
            "or script.py[:function] with a function load_data as Polygraphy takes it, which is run as your own code. "
            "Folders and files may be URLs such as s3://bucket/photos (extra remote).",
            show_default=False,
        ),
    ],
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Samples per batch; entropy calibration depends on it.")
    ] = 8,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How the model wants its images: imagenet, torchvision-SIZE, yolo-letterbox, 0-1, -1-1 or raw. "
            "Images are always brought to the model's height and width.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="shorter|stretch|letterbox|none", help="Change the preset: how images get their size."),
    ] = None,
    resize_to: Annotated[int | None, typer.Option(min=1, help="Length of the shorter side before the crop.")] = None,
    crop: Annotated[str | None, typer.Option(metavar="center|none", help="What is cut out after resizing.")] = None,
    interpolation: Annotated[
        str | None, typer.Option(metavar="bilinear|bicubic|nearest|lanczos|box", help="Filter for resizing.")
    ] = None,
    color: Annotated[str | None, typer.Option(metavar="RGB|BGR|L", help="Order of the channels; L is grey.")] = None,
    scale: Annotated[float | None, typer.Option(help="Factor for pixels 0..255, before mean and std.")] = None,
    mean: Annotated[str | None, typer.Option(metavar="M[,M,M]", help="Subtracted, per channel as it is fed.")] = None,
    std: Annotated[str | None, typer.Option(metavar="S[,S,S]", help="Divided by, per channel as it is fed.")] = None,
    pad_value: Annotated[int | None, typer.Option(min=0, max=255, help="Pixel that fills a letterbox.")] = None,
    layout: Annotated[
        str | None, typer.Option(metavar="CHW|HWC", help="Axis order, where the model's shape leaves it open.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Rows file,label for images that no class folders sort."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[INPUT:]SIZES",
            help="Fix dynamic axes, without the batch axis: 3x640x640 or x:3x640x640. Repeatable.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many samples of the order.", show_default="all")
    ] = None,
    order: Annotated[str, typer.Option(metavar="given|sorted|shuffled", help="Order of the samples.")] = "given",
    seed: Annotated[int, typer.Option(help="Seed of --order shuffled.", show_default="0")] = 0,
    partial: Annotated[
        str, typer.Option(metavar="pad|wrap|drop|error", help="What becomes of a last batch that is not full.")
    ] = "pad",
) -> Batches:
    """The options that describe samples -> batches for the model."""
    from trtcal.samples.batches import Batches
    from trtcal.samples.options import fix_shapes, image_preprocess
    from trtcal.samples.sources import holds_arrays, open_source

    inputs = fix_shapes(inputs, shape or [])
    knobs = {
        "resize": resize,
        "resize_to": resize_to,
        "crop": crop,
        "interpolation": interpolation,
        "color": color,
        "scale": scale,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "pad_value": pad_value,
    }
    given = {name: value for name, value in knobs.items() if value is not None}
    if preset is None and (given or layout):
        raise ValueError(f"--{next(iter(given), 'layout').replace('_', '-')} changes a preset; name one with --preset")
    as_it_is = preset == "raw" and not given and holds_arrays(data)  # raw is what arrays are anyway
    prepare = None if preset is None or as_it_is else image_preprocess(inputs, preset, layout=layout, **given)
    source = open_source(data, inputs=inputs, preprocess=prepare, labels=labels)
    return Batches(source, batch_size, order=order, seed=seed, samples=samples, partial=partial)  # type: ignore[arg-type]


_IMAGES = frozenset(
    {
        *("preset", "resize", "resize_to", "crop", "interpolation", "color"),
        *("scale", "mean", "std", "pad_value", "layout"),
    }
)


def takes_samples(*without: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of :func:`_samples`, and hand it the ``batches`` they make.

    Less those in ``without``; with other ``defaults``. The command's own ``model`` says what the samples are for. A
    command that asks for ``onnx`` is handed this model as `trtcal.model.open.Model` and refuses engines; one that asks
    for ``opened`` takes either.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        every: Mapping[str, inspect.Parameter] = inspect.signature(
            _samples, eval_str=True, locals={"Batches": object, "InputSpec": object}
        ).parameters
        shared = {
            name: parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in every.items()
            if name not in ("inputs", *without)
        }
        for name, parameter in shared.items():
            if name in defaults:
                parameter.annotation.__metadata__[0].show_default = True
            if name != "data":
                panel = "Image preprocessing" if name in _IMAGES else "Samples"
                parameter.annotation.__metadata__[0].rich_help_panel = panel
        own = inspect.signature(command, eval_str=True, locals={"Batches": object, "OpenModel": object}).parameters

        @functools.wraps(command)
        def run(**values: Any) -> None:
            # A loader script may print what it likes: standard output is for --json.
            Output.stdout = sys.stdout
            try:
                if "onnx" in own and is_engine(values["model"]):
                    raise ValueError(f"{values['model']}: is a TensorRT engine; give the ONNX model")
                with redirect_stdout(sys.stderr), _opened(values["model"]) as (inputs, opened):
                    batches = _samples(inputs, **{name: values[name] for name in shared})
                    handed = {"batches": batches, "opened": opened, "onnx": opened}
                    command(**{name: {**handed, **values}[name] for name in own})
            finally:
                Output.stdout = None

        parameters = {**{"model": own["model"], "data": shared["data"]}, **own, **shared}
        for handed in ("batches", "opened", "onnx"):
            parameters.pop(handed, None)
        keyword = inspect.Parameter.KEYWORD_ONLY
        run.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in parameters.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return run

    return decorate


@contextmanager
def _opened(model: Path) -> Iterator[tuple[tuple[InputSpec, ...], Any]]:
    """Model -> what it is to be fed, and the model or engine that it is, while the block lasts."""
    from trtcal.model.open import open_model

    if not is_engine(model):
        found = open_model(model)
        yield found.inputs, found
        return
    with open_engine(model) as engine:
        yield tuple(engine.inputs), engine


def is_engine(model: Path) -> bool:
    """Does the file's name say that it is a TensorRT engine?"""
    return model.suffix.lower() in (".engine", ".plan", ".trt")


def open_engine(path: Path) -> Any:
    """Engine file -> a Runner that also tells its ``inputs``; BackendError where no engine can run."""
    from trtcal.errors import BackendError

    try:
        from calibrators import Engine

        return Engine(path)
    except ImportError as error:
        raise BackendError(
            f"{path}: an engine runs only where TensorRT and calibrators are installed: {error}"
        ) from error


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text}: expected numbers joined by commas, such as 0.5,0.5,0.5") from None


def print_out(text: str) -> None:
    """What a command was asked for -> standard output, past the redirection that keeps a loader's prints off it."""
    terminal.put(terminal.lines(text.split("\n")), Output.stdout)


class Output:
    """Lines for people, on standard error so that --json owns standard output; silent with --quiet."""

    quiet = False
    stdout: TextIO | None = None

    def __call__(self, text: str) -> None:
        """Say it, unless asked to be quiet."""
        if not self.quiet and sys.stderr is not None:  # as in a process without one
            terminal.put(terminal.lines(text.split("\n")), sys.stderr)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        """A bar where a person watches, nothing where the output goes to a file."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done, total=None, label=None: bar.update(task, completed=done, total=total, description=label)
