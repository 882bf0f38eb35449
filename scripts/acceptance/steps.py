"""The steps, those first whose answers matter most: a run that is cut short has them."""

from __future__ import annotations

from collections.abc import Iterator

from acceptance import calls, engines, facts, parity, performance
from acceptance.findings import Context, Finding, Step, compared
from acceptance.networks import Model, named


def _libraries(context: Context) -> Iterator[Finding]:
    """The step that runs before all others: whether there is anything to run them on."""
    yield compared("test doubles among the libraries", list(context.doubles), [])


MACHINE = Step("machine", "TensorRT, the GPU, and whether they are the real ones", _libraries, 60)


def _parity(name: str, seconds: float = 75) -> Step:
    def run(context: Context) -> Iterator[Finding]:
        return parity.model_parity(named(context.models, name), context)

    return Step(f"parity-{name}", f"caches of {name}: TensorRT's against ours, tensor by tensor", run, seconds)


ALWAYS = ("demo", "residual", "branches")

STEPS = (
    MACHINE,
    Step("calls", "order and number of calls; caches of every kind", calls.order_of_calls, 75),
    Step("facts", "the rules of the histogram and the search", facts.settle, 90),
    Step("batches", "what a batch is; the other calibrators; odd data", facts.batch_facts, 75),
    _parity("demo"),
    Step("gpu-stats", "statistics collected on the GPU equal the CPU's", performance.gpu_statistics, 75),
    Step("kernel", "the histogram kernel's rate", performance.kernel_rate, 30),
    _parity("residual"),
    Step("guards", "failing feeds through our calibrators", calls.our_guards, 45),
    _parity("branches"),
    Step("accuracy", "INT8 engines by batch size and order", engines.engine_accuracy, 150),
    Step("latency", "FP32, FP16, INT8", engines.latency, 100),
    Step("overlap", "how long the builder waits for data", performance.feed_overlap, 60),
    Step("polygraphy", "a calibration's time beside Polygraphy's", performance.against_polygraphy, 60),
    Step("leaks", "device memory after many builds and feeds", performance.leaks, 60),
    Step("torch", "beside a PyTorch context", engines.beside_torch, 45),
)


def all_steps(models: list[Model]) -> tuple[Step, ...]:
    """The steps, with one of parity for each further model after the first of them."""
    further = [_parity(model.name, 150) for model in models if model.name not in ALWAYS]
    at = next(number for number, step in enumerate(STEPS) if step.name == "parity-demo") + 1
    return (*STEPS[:at], *further, *STEPS[at:])
