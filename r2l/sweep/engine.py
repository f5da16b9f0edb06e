"""Where runs are carried out: Dask's workers, here, behind an address, under SLURM or Kubernetes."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2l.files import R2LError, choose
from r2l.progress import usable_cores, variables
from r2l.sweep.jobs import ParameterError, read_yaml

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

#: Kinds of cluster that a file can ask for beside "local", and where their classes are.
_CLUSTERS = {
    "slurm": ("dask_jobqueue", "SLURMCluster"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster"),
}
#: What else a file can say, of which types, and how it is asked for.
_VALUES = {
    "address": ((str,), "tcp://HOST:PORT"),
    "workers": ((int,), "a number of 1 or more"),
    "threads": ((int,), "a number of 1 or more"),
    "wait": ((int, float), "seconds"),
}
#: How Dask's schedulers and workers differ here from what they are else.
_DASK = {
    # No run waits at a worker's door, where it would be lost with the worker.
    "distributed.scheduler.worker-saturation": 1.0,
    # A daemonic process may not start the processes that load data.
    "distributed.worker.daemon": False,
    # Dask has memory given back at once, for which each tensor is cleared anew by the system.
    "distributed.nanny.pre-spawn-environ": {},
}
#: What each local worker would import anew, in 6 seconds of a core.
_IMPORTED = ["r2l.sweep.runs", "r2l.training.experiment", "distributed", "mlflow"]
#: Why workers can't be had, and what to do.
_TROUBLE = {
    "local": (
        "the workers on this machine did not start",
        "In a script, keep what starts them below if __name__ == '__main__', since each worker imports "
        "the script",
    ),
    "address": (
        "no Dask scheduler answers",
        "Start one (dask scheduler) and its workers (dask worker ADDRESS --nthreads 1), or leave out "
        "--scheduler",
    ),
    "queue": ("there is no such cluster", "Mend what stands below options in the file"),
}
#: Workers on a machine without a GPU, unless asked for: each takes half a gigabyte and more.
_MOST = 8
#: Seconds without a worker after which a line says so.
_PATIENCE = 60.0
#: How often a queue is asked for workers in the place of those that it has ended.
_RENEWAL = "10s"


class ClusterError(R2LError, OSError):
    """Workers that can't be had, or were lost for good."""


@dataclass(frozen=True)
class Engine:
    """Workers of Dask, to be had for the length of a ``with engine.connect() as client`` block."""

    about: str
    workers: int  # as many as are meant to be there
    threads: int | None  # of each run; None leaves torch's own number
    start: Callable[[], Cluster | str]  # a new cluster, or the address of a scheduler that runs already
    kind: str  # of cluster: "local", "address", "slurm" or "kubernetes"
    wait: float  # seconds, for a scheduler and a first worker
    deaths: int  # of workers at one run, after which the run is given up
    forks: bool = False  # whether workers are forked from one process: not where one has looked for GPUs

    def prepare(self) -> None:
        """Begin to import what local workers need, which takes seconds, and return meanwhile."""
        server = forkserver._forkserver
        if self.forks and server._forkserver_pid is None:
            server.set_forkserver_preload(_IMPORTED)
            with variables({**_environment(0, 0, self.threads), "R2L_FORKED": "yes"}):
                server.ensure_running()
            # Where nothing is left to be done it still imports when all else ends.
            atexit.register(os.kill, server._forkserver_pid, signal.SIGTERM)

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """Yield a client that at least one worker listens to.

        A second block is a second cluster, or a second connection to the same one: what a sweep does when
        it has lost the first. A ClusterError where there is no scheduler or no worker.
        """
        import dask
        from distributed import Client

        config = {**_DASK, "distributed.scheduler.allowed-failures": self.deaths - 1}
        config |= {"distributed.worker.multiprocessing-method": "forkserver"} if self.forks else {}
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(config))
            try:
                self.prepare()
                cluster = self.start()
                if not isinstance(cluster, str):
                    stack.enter_context(cluster)
                client = stack.enter_context(Client(cluster, timeout=self.wait))
            except (OSError, TypeError, ValueError, RuntimeError) as error:
                why, remedy = _TROUBLE.get(self.kind, _TROUBLE["queue"])
                raise ClusterError(self.about, f"{why} ({error})", remedy) from error
            try:
                try:
                    client.wait_for_workers(1, timeout=min(self.wait, _PATIENCE))
                except TimeoutError:
                    print(f"still no worker ({self.about}); its queue and logs say why", file=sys.stderr)
                    client.wait_for_workers(1, timeout=max(self.wait - _PATIENCE, 0.01))
            except OSError as error:  # a TimeoutError is one
                why, remedy = f"no worker came within {self.wait:g} s", "Look at the cluster's queue and logs"
                raise ClusterError(self.about, why, remedy) from error
            yield client


def open_engine(
    *,
    workers: int | None = None,
    threads: int | None = None,
    scheduler: str | None = None,
    cluster: str | Path | None = None,
    wait: float = 600.0,
    deaths: int = 3,
) -> Engine:
    """Return where a sweep is to be carried out, by the options of `r2l sweep`; nothing is started yet.

    Workers are processes on this machine, or jobs of the cluster.

    Raises:
        OSError: the file can't be read.
        ParameterError: it is no such file; or both a scheduler and a cluster are given.
        ClusterError: the package for that kind of cluster is not installed.
    """
    if scheduler and cluster:
        raise ParameterError("--scheduler and --cluster", "two ways to the workers", "Choose one")
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ParameterError(f"--{name} is {value}", "too few", "Give 1 or more")
    values = _read_cluster(Path(cluster)) if cluster else {}
    workers, threads = workers or values.get("workers"), threads or values.get("threads")
    wait, address = values.get("wait", wait), scheduler or values.get("address")
    kind, forks = values.get("cluster", "local"), False
    if kind != "local":
        if workers is None:
            raise ParameterError(cluster, "how many workers?", "Give 'workers: 8', or --workers 8")
        about = f"{workers} worker(s) of {kind} ({Path(cluster).name})"
        start = _queue(kind, workers, values.get("options", {}))
    elif address:
        workers, about, kind = workers or 1, f"the workers of {address}", "address"
        start = partial(str, address)
    else:
        gpus, cores = _count_gpus(), usable_cores()
        forks = sys.platform == "linux" and not gpus
        workers = workers or gpus or min(cores, _MOST)
        threads = threads or max(cores // workers, 1)
        each = f", one GPU each of {gpus}" if gpus else ""
        about = f"{workers} worker(s) on this machine{each}, {threads} thread(s) each"
        start = partial(_local_cluster, workers, gpus, threads)
    return Engine(about, workers, threads, start, kind, wait, deaths, forks)


def _count_gpus() -> int:
    """Return how many GPUs torch has; where there is no device of any kind, without importing it."""
    kinds = "nvidia*", "nvhost*", "kfd", "dxg"
    if sys.platform == "linux" and not any(any(Path("/dev").glob(kind)) for kind in kinds):
        return 0
    import torch

    return torch.cuda.device_count()


def _read_cluster(path: Path) -> dict[str, Any]:
    """Return what a cluster file says; mistakes below ``options`` are for Dask to find."""
    _, values = read_yaml(path)
    values = {name: value for name, value in values.items() if value is not None}
    names = ("cluster", *_VALUES, "options")
    if odd := ", ".join(sorted(set(values) - set(names))):
        raise ParameterError(path, f"{odd} is not known", f"There are {', '.join(names)}")
    for name, (kinds, expected) in _VALUES.items():
        value = values.get(name, "tcp://" if str in kinds else 1)
        if type(value) not in kinds or (str not in kinds and not 0 < value < 1e8):
            raise ParameterError(path, f"{name} is {value!r}", f"Give {expected}")
    options = values.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ParameterError(path, "below options are no values by name", "Give lines 'name: value'")
    try:
        choose("cluster", values.get("cluster", "local"), ("local", *_CLUSTERS))
    except ValueError as error:
        raise ParameterError(path, str(error), "experiments/clusters holds examples") from error
    return values


def _local_cluster(workers: int, gpus: int, threads: int) -> Cluster:
    from distributed import Nanny, Scheduler, SpecCluster

    # On the loopback address alone: whoever reaches a scheduler can run code on its workers.
    home = {"host": "127.0.0.1", "dashboard": False}
    each = {"nthreads": 1, "memory_limit": 0, "silence_logs": 50, **home}
    options = [{**each, "env": _environment(i, gpus, threads)} for i in range(workers)]
    spec = {i: {"cls": Nanny, "options": option} for i, option in enumerate(options)}
    scheduler = {"cls": Scheduler, "options": {**home, "dashboard_address": "127.0.0.1:0"}}
    return SpecCluster(spec, scheduler, silence_logs=50)


def _environment(number: int, gpus: int, threads: int) -> dict[str, str]:
    """Return the variables of a local worker: its share of cores and its GPU."""
    shares = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**shares, "CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else shares


def _queue(kind: str, workers: int, options: dict[str, Any]) -> Callable[[], Cluster]:
    """Return what asks a queue for workers, and for others in the place of those that it has ended."""
    make = _cluster_class(kind)

    def start() -> Cluster:
        cluster = make(**options)
        cluster.scale(workers)
        if kind == "slurm":
            # Kubernetes does it by itself: Dask's operator makes each worker a Deployment.
            cluster.adapt(minimum=workers, maximum=workers, interval=_RENEWAL)
        return cluster

    return start


def _cluster_class(kind: str) -> Callable[..., Cluster]:
    module, name = _CLUSTERS[kind]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        why = f"they need a package that isn't here ({error})"
        raise ClusterError(f"clusters of the kind {kind}", why, f"pip install 'r2l[{kind}]'") from error
