"""What the commands share: the options that describe samples, and how lines reach people."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trtcal.files import terminal
from trtcal.files.settings import flag, is_joined
from trtcal.samples.options import SampleOptions
from trtcal.sweep.plan import EXCLUDE, QUICK, SweepPlan

if TYPE_CHECKING:
    from trtcal.judging.accuracy import Labels
    from trtcal.judging.metrics import Metric
    from trtcal.model.open import Model as OpenModel
    from trtcal.passes.executor import Executor
    from trtcal.samples.batches import Batches
    from trtcal.spec import InputSpec

EVERY_SECONDS = 30  # between lines about progress where there is no terminal

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
        help=EXCLUDE,
        show_default=False,
    ),
]
OrtLibrary = Annotated[
    list[str] | None,
    typer.Option(
        "--ort-library",
        metavar="FILE",
        help="A library of custom operators to register with ONNX Runtime, for a model that has them. Repeatable.",
        show_default=False,
        rich_help_panel="Model",
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


_TYPES: dict[str, Any] = {
    "str": str,
    "str | None": str | None,
    "int": int,
    "int | None": int | None,
    "float | None": float | None,
    "bool": bool,
    "tuple[str, ...]": list[str] | None,
}


def _parameter(item: Field[Any], at_most: int | None = None) -> inspect.Parameter:
    """A field of `SampleOptions` or `SweepPlan` -> the command line's parameter for it."""
    said, required = item.metadata, item.default is MISSING
    default: Any = None if item.default == () else item.default
    kind = _TYPES.get(str(item.type))
    if is_joined(item):
        kind, default = str | None, None if default is None else ",".join(map(str, default))
    shown: bool | str = said["otherwise"] or default not in (None, False)
    if item.name == "samples" and at_most is not None:
        shown = str(at_most)
    flags = [flag(item.name), *(["-b"] if item.name == "batch_size" else [])]
    if default is True:
        flags = [f"{flag(item.name)}/{flag(f'no_{item.name}')}"]
    option = typer.Option(
        *flags,
        help=said["help"],
        metavar=said["metavar"],
        show_default=shown if not required else False,
        rich_help_panel=None if required else said["group"],
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[kind, option],
        default=inspect.Parameter.empty if required else default,
    )


def takes_samples(
    at_most: int | None = None, *, calibrating: bool = False, **fixed: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `SampleOptions`, but for those that are ``fixed``, and hand it what they make.

    That is ``batches``, where it takes these, ``at_most`` so many samples unless the user says how many; else
    the ``options`` themselves; for ``calibrating`` in the batches that TensorRT will use. The command's own ``model``
    says what the samples are for. A command that asks for ``onnx`` is handed this model as `trtcal.model.open.Model`
    and refuses engines; one that asks for ``opened`` takes either. In the place of a ``plan`` stand the options of
    `SweepPlan`, and it is handed one.
    """
    handed = ("batches", "options", "opened", "onnx")

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = {item.name: _parameter(item, at_most) for item in fields(SampleOptions) if item.name not in fixed}
        own = inspect.signature(
            command, eval_str=True, locals=dict.fromkeys(("Batches", "SampleOptions", "SweepPlan", "OpenModel"), object)
        ).parameters
        planned = {item.name: _parameter(item) for item in fields(SweepPlan)} if "plan" in own else {}

        @functools.wraps(command)
        def run(**values: Any) -> None:
            # A loader script may print what it likes: standard output is for --json.
            Output.stdout = sys.stdout
            try:
                if "onnx" in own and is_engine(values["model"]):
                    raise ValueError(f"{values['model']}: is a TensorRT engine; give the ONNX model")
                if values.get("quick"):
                    chosen = {name for name in QUICK if _is_given(values["context"], name)}
                    values = {**values, **{name: QUICK[name] for name in QUICK.keys() - chosen}}
                plan = SweepPlan(**{name: values[name] for name in planned}) if planned else None
                options = SampleOptions(**fixed, **{name: values[name] for name in shared})
                with redirect_stdout(sys.stderr), _opened(values["model"], options) as (inputs, opened):
                    made: dict[str, Any] = {"options": options, "plan": plan, "opened": opened, "onnx": opened}
                    if "batches" in own:
                        made["batches"] = options.open(inputs, at_most=at_most, calibrating=calibrating)
                    command(**{name: {**made, **values}[name] for name in own})
            finally:
                Output.stdout = None

        alone: dict[str, inspect.Parameter] = {}
        for name, parameter in own.items():
            if name not in (*handed, *shared):
                alone |= planned if name == "plan" else {name: parameter}
        parameters = {"model": own["model"], "data": shared["data"], **alone, **shared}
        keyword = inspect.Parameter.KEYWORD_ONLY
        run.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in parameters.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return run

    return decorate


def _is_given(context: Any, name: str) -> bool:
    """Was a parameter given on the command line, and is its value not the default?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@contextmanager
def _opened(model: Path, options: SampleOptions) -> Iterator[tuple[tuple[InputSpec, ...], Any]]:
    """Model, fed as the options say -> its inputs, and the model or engine that it is, while the block lasts."""
    from trtcal.model.open import open_model

    if not is_engine(model):
        found = open_model(model, libraries=options.ort_library).asked(options.batch_axis, options.input)
        yield found.inputs, found
        return
    if options.batch_axis or options.input:
        raise ValueError(f"{model}: an engine counts samples on the first axis; leave --batch-axis and --input out")
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
    def progress(self, label: str, total: int, *, lines: bool = False) -> Iterator[Any]:
        """A bar where a person watches; in a file nothing, or with ``lines`` one every 30 seconds."""
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield self._lines(label) if lines and not self.quiet else None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done, total=None, label=None: bar.update(task, completed=done, total=total, description=label)

    def _lines(self, label: str, clock: Callable[[], float] = time.monotonic) -> Callable[..., None]:
        """What takes the place of a bar: a line every 30 seconds."""
        last = start = clock()

        def tell(done: int, total: int | None = None, label: str = label) -> None:
            nonlocal last
            if clock() - last >= EVERY_SECONDS:
                last = clock()
                of = f" of {total} ({done / total:.0%})" if total else ""
                self(f"{label}: {done}{of}, {round(last - start)} s so far")

        return tell


def scoring(
    metric: list[str] | None, labels: str | None, batches: Batches, model: OpenModel | None
) -> tuple[dict[str, Metric], Labels | None]:
    """--metric, --labels, samples and the ONNX model -> metrics by name, top1 unless others are asked for, and labels
    where they are known and all of the model's outputs can be computed.

    ValueError where metrics are asked for and no labels are known.
    """
    from trtcal.judging.evaluation import for_metric, labels_of
    from trtcal.judging.metrics import metric as named

    metrics = {name: named(name) for name in metric or ["top1"]}
    truth = labels_of(batches, labels, metrics)
    if metric and truth is None:
        raise ValueError(
            f"--metric {metric[0]} needs labels; give --labels, class folders, or `labels` in the .npz file"
        )
    if model is not None:
        truth = for_metric(model, truth, asked=bool(metric) or labels is not None)
    return metrics, truth
