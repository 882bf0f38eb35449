"""On a real Ray cluster of two nodes, which the tests start and stop."""

from __future__ import annotations

import collections
import contextlib
import http.server
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import conv_model, images, save

from trtcal.cluster import distributed
from trtcal.cluster import ray_cluster as cluster_module
from trtcal.cluster.executor import RayExecutor
from trtcal.cluster.ray_cluster import Cluster
from trtcal.errors import BackendError, DataError, NonFiniteError
from trtcal.files.scripts import load_function
from trtcal.model.open import FloatRunner, open_model
from trtcal.passes import collect as collector
from trtcal.passes.executor import Here
from trtcal.ranges.stats import ActivationStats
from trtcal.samples.batches import Batches
from trtcal.samples.sources import ArrayFolder, ArraySource, ImageFolder, RayData
from trtcal.spec import InputSpec
from trtcal.sweep.cpu_judge import CpuJudge
from trtcal.sweep.plan import SweepPlan
from trtcal.sweep.run import run_sweep

Open = Callable[[], Any]


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"pip install 'trtcal\[ray\]'"), Cluster():
        pass


def test_modules_of_scripts_travel_whatever_they_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    travel: list[Any] = []
    pickler = SimpleNamespace(register_pickle_by_value=travel.append)
    monkeypatch.setattr(cluster_module, "_ray", lambda: SimpleNamespace(cloudpickle=pickler, put=lambda value: value))
    monkeypatch.setattr("trtcal.files.scripts._PREFIX", "by_another_name_")
    script = tmp_path / "script.py"
    script.write_text("def function(item): return 10 // item\n")
    function = load_function(f"{script}:function")
    assert Cluster().share(function).ref is function
    assert [module.function for module in travel] == [function]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_cluster_that_does_not_answer_is_named(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_ray", lambda: SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9" if how == "environment" else "")
    address = "127.0.0.1:9" if how == "option" else None
    with pytest.raises(BackendError, match=r"the Ray cluster at 127\.0\.0\.1:9 does not answer"), Cluster(address):
        pass


def test_the_port_of_a_web_page_is_told_from_that_of_the_head_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_ray", lambda: SimpleNamespace(is_initialized=lambda: False))

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with (
            pytest.raises(
                BackendError, match=rf"127\.0\.0\.1:{server.server_port} cannot be used: a web page is there"
            ),
            Cluster(f"127.0.0.1:{server.server_port}"),
        ):
            pass
        thread.join()


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (-1, 0), (1, -1)])
def test_resources_that_no_task_can_take_are_refused(cpus: float, gpus: float) -> None:
    with pytest.raises(ValueError, match="a task needs some of a CPU"):
        Cluster(cpus=cpus, gpus=gpus)


def test_what_can_be_run_through_only_once_is_refused() -> None:
    with pytest.raises(TypeError, match="a generator can be run through only once"):
        distributed.collect(network(), (batch for batch in []), cluster=Cluster())


@pytest.mark.parametrize("parts", range(1, 12))
def test_a_tree_keeps_the_order_of_its_parts_whichever_comes_first(parts: int) -> None:
    for seed in range(5):
        tree = distributed._Tree(lambda one, two: one + two)
        there: set[int] = set()
        for place in np.random.default_rng(seed).permutation(parts).tolist():
            tree.put(place, chr(ord("a") + place))
            there.add(place)
            first = next(number for number in range(parts + 1) if number not in there)
            assert "".join(tree.beginning()) == "abcdefghijkl"[:first]
        assert tree.whole() == "abcdefghijkl"[:parts]


def test_a_segment_that_the_statistics_hold_already_is_not_taken_into_them_again() -> None:
    """As an interruption leaves it that comes between the two steps."""
    run = object.__new__(distributed._Pass)
    with network()() as runner:
        run.stats = collector.collect(runner, batches_of(data(8)))
    segment = distributed._Segment(0, 1, lambda one, two: pytest.fail("nothing is to be added"))
    segment.tree.put(0, "the part of the second batch")
    run.segments = collections.deque([segment])
    assert run.so_far() is run.stats


# --- on the cluster

ON_RAY = [
    pytest.mark.slow(reason="starts a Ray cluster"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of the pipes to the processes that Ray starts
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def on_ray(test: Any) -> Any:
    for mark in ON_RAY:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one CPU each on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'trtcal[ray]'")
    import ray
    from ray.cluster_utils import Cluster as Nodes

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    nodes = Nodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def cluster(nodes: Any) -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


def network(log: Path | None = None, slow: float = 0, stall: int | None = None) -> Open:
    """A runner of several kinds of tensors; ``log`` gets a line with the process and the first element of each sample.

    Sample number ``stall`` of :func:`data` takes half a second.

    All of it is defined inside, so that it travels to workers, which cannot import this file.
    """

    @contextlib.contextmanager
    def open_runner() -> Iterator[Any]:
        def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            x = batch["x"]
            if log is not None:
                with open(log, "a") as file:
                    file.write(f"{os.getpid()} {x.flat[0]}\n")
            time.sleep(0.5 if x.flat[0] == np.float32(0.001 * (stall or -1)) else slow)
            large = np.abs(x) > 3.5
            return {
                "x": x,
                "relu": np.maximum(x, 0),
                "late": np.where(large, x, 0),
                "mask": np.where(x > 9, -np.inf, x),
                "dead": x * 0,
                "root": np.where(x == 77, np.nan, np.abs(x)),
            }

        yield run

    return open_runner


def data(number: int = 101) -> np.ndarray:
    """Few levels, so that many elements lie on limits; small at first, so that limits grow and one tensor is silent."""
    rng = np.random.default_rng(3)
    x = np.rint(rng.laplace(size=(number, 30)) * np.geomspace(0.2, 3, number)[:, None] * 8) / 8
    x[:, 0] = 0.001 * np.arange(number)
    return np.clip(x, -8, 8).astype(np.float32)


def batches_of(x: np.ndarray, size: int = 4, **options: Any) -> Batches:
    return Batches(ArraySource({"x": x}), size, **options)


def here(batches: Any, open_runner: Open | None = None, **options: Any) -> ActivationStats:
    with (open_runner or network())() as runner:
        return collector.collect(runner, batches, **options)


@on_ray
@pytest.mark.parametrize("shard_samples", [1, 9, None])
@pytest.mark.parametrize("partial", ["pad", "wrap"])
def test_the_statistics_have_the_bytes_of_one_process(
    cluster: Cluster, shard_samples: int | None, partial: Any, caplog: pytest.LogCaptureFixture
) -> None:
    batches = batches_of(data(), partial=partial)
    with caplog.at_level("INFO"):
        found = distributed.collect(network(), batches, cluster=cluster, shard_samples=shard_samples)
    assert found.to_bytes() == here(batches).to_bytes()
    assert "counting 1 tensors again" in caplog.text  # "late", which is silent in the first batch


@on_ray
def test_batches_that_are_read_here_and_a_mask_and_the_other_growth_give_the_same_bytes(cluster: Cluster) -> None:
    x = data()
    x[50, 3] = 9.5
    plain = [{"x": x[i : i + 7]} for i in range(0, len(x), 7)]
    for growth in ("double", "power-of-two"):
        found = distributed.collect(network(), plain, cluster=cluster, growth=growth, shard_samples=10)
        assert found.to_bytes() == here(plain, growth=growth).to_bytes()


@on_ray
def test_no_batches_are_an_error_here_as_well(cluster: Cluster) -> None:
    with pytest.raises(DataError, match="nothing to calibrate on"):
        distributed.collect(network(), [], cluster=cluster)


@on_ray
def test_statistics_are_looked_at_and_progress_is_told_as_in_one_process(cluster: Cluster) -> None:
    batches = batches_of(data())
    expected: list[ActivationStats] = []
    found: list[ActivationStats] = []
    done: list[int] = []
    here(batches, look=expected.append)
    distributed.collect(network(), batches, cluster=cluster, look=found.append, progress=done.append, shard_samples=8)
    assert [stats.to_bytes() for stats in found] == [stats.to_bytes() for stats in expected]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (4, 101)


@on_ray
def test_a_worker_that_is_killed_costs_its_shard_alone(cluster: Cluster, tmp_path: Path) -> None:
    batches, log = batches_of(data()), tmp_path / "log"
    killed: list[int] = []

    def kill(done: int) -> None:
        if done > 40 and not killed:
            killed.append(int(log.read_text().split()[-2]))
            os.kill(killed[0], signal.SIGKILL)

    found = distributed.collect(network(log, 0.005), batches, cluster=cluster, progress=kill, shard_samples=8)
    assert found.to_bytes() == here(batches).to_bytes()
    assert killed
    runs = len(log.read_text().splitlines())
    again = sum(float(line.split()[1]) > 0 for line in log.read_text().splitlines()) - 100
    assert runs < 3 * 101  # each sample once, "late" again, and a few of the shard that was lost
    assert again > 0


@on_ray
def test_a_node_that_is_lost_takes_nothing_with_it(nodes: Any, cluster: Cluster) -> None:
    batches = batches_of(data())
    extra: list[Any] = [nodes.add_node(num_cpus=2, object_store_memory=100_000_000)]
    nodes.wait_for_nodes()

    def lose(done: int) -> None:
        if done > 60 and extra:
            nodes.remove_node(extra.pop(), allow_graceful=False)

    found = distributed.collect(network(slow=0.01), batches, cluster=cluster, progress=lose, shard_samples=4)
    assert not extra
    assert found.to_bytes() == here(batches).to_bytes()


@on_ray
def test_a_shard_that_kills_every_worker_is_an_error_that_names_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "RETRIES", 1)

    @contextlib.contextmanager
    def deadly() -> Iterator[Any]:
        yield lambda batch: os._exit(1) if batch["x"].max() > 7 else batch

    x = np.arange(10, dtype=np.float32)[:, None]
    with pytest.raises(BackendError, match="Ray could not run the samples from 8 on: WorkerCrashedError"):
        distributed.collect(deadly, batches_of(x, 2), cluster=cluster, shard_samples=2)


@on_ray
def test_the_error_is_the_one_that_a_single_process_would_come_to(cluster: Cluster) -> None:
    x = data()
    x[[37, 80, 99], 5] = 77

    with pytest.raises(NonFiniteError) as alone:
        here(batches_of(x))
    for shard_samples in (4, 30):
        with pytest.raises(NonFiniteError) as found:
            # The other worker comes to the later ones first.
            distributed.collect(network(stall=36), batches_of(x), cluster=cluster, shard_samples=shard_samples)
        assert str(found.value) == str(alone.value)
        assert str(found.value).startswith("037: tensor 'root' holds nan")


@on_ray
def test_a_source_that_fails_while_it_is_read_here_fails_after_what_came_before_it(cluster: Cluster) -> None:
    class Feed:
        def __init__(self, x: np.ndarray) -> None:
            self.x = x

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for row in self.x[:20]:
                yield {"x": row[None]}
            raise DataError("row 20 is torn")

    x = data()
    with pytest.raises(DataError, match="row 20 is torn"):
        distributed.collect(network(), Feed(x), cluster=cluster, shard_samples=3)
    x[18, 5] = 77
    with pytest.raises(NonFiniteError, match=r"^sample 18: "):
        distributed.collect(network(stall=17), Feed(x), cluster=cluster, shard_samples=3)


@on_ray
def test_an_interrupted_pass_goes_on_here_or_there_with_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    batches, path, whole = batches_of(data()), tmp_path / "partial.npz", here(batches_of(data())).to_bytes()

    def interrupt(done: int) -> None:
        if done > 90:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"checkpoint": path, "checkpoint_key": "k"}
    for go_on in (
        lambda open_runner: here(batches, open_runner, **options),
        lambda open_runner: distributed.collect(open_runner, batches, cluster=cluster, shard_samples=8, **options),
    ):
        with pytest.raises(KeyboardInterrupt):
            distributed.collect(network(), batches, cluster=cluster, shard_samples=4, progress=interrupt, **options)
        left = collector.load_checkpoint(path, "k")
        assert left is not None
        assert len(left.samples) >= 16  # how many more depends on the slowest shard
        log = tmp_path / "log"
        log.write_text("")
        assert go_on(network(log)).to_bytes() == whole
        assert len(log.read_text().splitlines()) <= 101 - len(left.samples) + 16
        assert not path.exists()


@on_ray
def test_no_more_is_sent_ahead_than_a_bounded_number_of_shards(cluster: Cluster) -> None:
    x = data()
    read: list[int] = []
    ahead: list[int] = []

    class Feed:
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for number, row in enumerate(x):
                read.append(number)
                yield {"x": row[None] + 4}

    distributed.collect(
        network(slow=0.002), Feed(), cluster=cluster, shard_samples=2, progress=lambda n: ahead.append(len(read) - n)
    )
    assert max(ahead) <= 2 * cluster_module.IN_FLIGHT * cluster.slots
    assert max(ahead) > 0


@on_ray
def test_a_task_that_no_node_can_run_is_warned_of(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with Cluster(cpus=1):
        assert caplog.messages == []
    with Cluster(cpus=64, gpus=1):
        told = [message.split(" and no node of the cluster has more than ")[0] for message in caplog.messages]
    assert told == ["a task takes 64 CPUs", "a task takes 1 GPUs"]


@on_ray
def test_items_are_spread_and_what_goes_wrong_with_one_is_its_own(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    script.write_text("OFFSET = 10\ndef function(item):\n    return OFFSET // item\n")
    found = dict(cluster.spread(load_function(f"{script}:function"), [1, 0, 5]))
    assert (found[0], found[2]) == (10, 2)
    assert isinstance(found[1], ZeroDivisionError)


@on_ray
def test_a_race_on_a_cluster_ends_as_it_does_here(cluster: Cluster, tmp_path: Path) -> None:
    model = save(conv_model(), tmp_path / "m.onnx")
    x = images(40) * np.random.default_rng(0).uniform(0.2, 3, (40, 1, 1, 1)).astype(np.float32)
    plan = SweepPlan(batch_sizes=(1, 20), orders=("given", "largest-last"), methods=("entropy", "mse", "percentile:50"))
    tables = []
    for where, executor in (("here", Here(1)), ("ray", RayExecutor(cluster))):
        batches = Batches(ArraySource({"image": x}), 4)
        judge = CpuJudge(model, batches, workers=executor.within_task.workers)
        run = run_sweep(model, batches, tmp_path / where, plan, judge=judge, executor=executor)
        tables.append((run.folder / "trials.csv").read_text())
    assert tables[0] == tables[1]
    assert ",16," in tables[0]  # samples, of what was dropped


@on_ray
def test_a_function_travels_once_for_as_long_as_no_other_is_spread(cluster: Cluster) -> None:
    class Slow:
        def __init__(self) -> None:
            self.calls = 0

        def call(self, item: int) -> int:
            self.calls += 1
            return self.calls

    slow = Slow()
    first = [found for _, found in cluster.spread(slow.call, range(8))]
    second = [found for _, found in cluster.spread(slow.call, range(8))]
    assert max(second) > max(first)  # what the workers hold is what they held
    assert slow.calls == 0


@on_ray
def test_pictures_and_arrays_are_read_by_the_workers(cluster: Cluster, tmp_path: Path) -> None:
    from PIL import Image

    from trtcal.samples.preprocess import preset

    graph = open_model(save(conv_model(), tmp_path / "m.onnx"))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "arrays").mkdir()
    rng = np.random.default_rng(0)
    for number in range(11):
        picture = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number:02}.png")
        np.savez(tmp_path / "arrays" / f"{number:02}.npz", image=images(2, seed=number))
    sources = [
        ImageFolder(tmp_path / "pictures", preset("0-1", size=(8, 8)), input_name="image"),
        ArrayFolder(tmp_path / "arrays", inputs=graph.inputs),
    ]
    for source in sources:
        assert len(pickle.loads(pickle.dumps(source))) == len(source)  # type: ignore[arg-type]
        batches = Batches(source, 4)
        expected = here(batches, lambda: FloatRunner(graph))
        found = RayExecutor(cluster).run_pass(partial(FloatRunner, graph), batches)
        assert found.to_bytes() == expected.to_bytes()


@on_ray
def test_rows_of_ray_data_are_samples_in_their_order(cluster: Cluster) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("pyarrow", reason="Ray Data needs pandas and pyarrow: pip install 'ray[data]'")
    pytest.importorskip("pandas", reason="Ray Data needs pandas and pyarrow: pip install 'ray[data]'")
    x, inputs = data(50), [InputSpec("x", np.dtype(np.float32), (30,))]
    rows = [{"x": row, "label": number} for number, row in enumerate(x)]
    source = RayData(ray.data.from_items(rows), inputs=inputs)
    batches = Batches(source, 4)
    assert batches.labels == tuple(range(50))
    assert np.array_equal(np.concatenate([batch["x"][: batch.valid] for batch in batches]), x)
    found = distributed.collect(network(), batches, cluster=cluster, shard_samples=8)
    expected = here(batches_of(x))
    assert {name: tensor.batch_grid for name, tensor in found.tensors.items()} == {
        name: tensor.batch_grid for name, tensor in expected.tensors.items()
    }
    with pytest.raises(DataError, match="no column 'y' for input 'x', it has x, label"):
        RayData(ray.data.from_items(rows), inputs=inputs, columns={"x": "y"})


@on_ray
def test_the_commands_give_on_ray_what_they_give_here(cluster: Cluster, run: Any, tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=images(20), labels=np.arange(20) % 5)
    data = ("m.onnx", "--data", "d.npz", "-b", 4)
    for name, options in {"here": (), "ray": ("--ray", "--ray-cpus", "0.5")}.items():
        code, _, err = run("calibrate", *data, "-o", f"{name}.cache", *options)
        assert code == 0, err
        code, _, err = run("sweep", *data, "-o", name, "--batch-sizes", "1,4", "--seeds", "1", *options)
        assert code == 0, err
    assert (tmp_path / "here.cache").read_bytes() == (tmp_path / "ray.cache").read_bytes()
    reports = [
        run("sensitivity", *data, "--cache", "here.cache", "--json", *options)[1] for options in ((), ("--ray",))
    ]
    assert reports[0] == reports[1] != ""
    for file in ("trials.csv", "stats.npz", "drift.json"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "ray" / file).read_bytes(), file


def test_options_for_tasks_need_ray(run: Any, tmp_path: Path) -> None:
    save(conv_model(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=images(4))
    code, _, err = run("calibrate", "m.onnx", "--data", "d.npz", "--ray-cpus", "2")
    assert code == 2
    assert "it goes with --ray or --ray-address" in err
