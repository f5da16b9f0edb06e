"""Where runs are carried out: Dask's workers, here, behind an address, under SLURM or Kubernetes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2l.sweep.notebook import ParameterError, read_yaml

if TYPE_CHECKING:
    from distributed import Client

#: Kinds of cluster that a file can ask for, and where their classes are.
CLUSTERS = {
    "slurm": ("dask_jobqueue", "SLURMCluster", "slurm"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "kubernetes"),
}
#: How Dask's workers differ here from what they are else.
_WORKERS = {
    # A daemonic process may not start the processes that load data.
    "distributed.worker.daemon": False,
    # Dask has memory given back at once, for which each tensor is cleared anew by the system.
    "distributed.nanny.pre-spawn-environ": {},
}
#: Workers on a machine without a GPU, unless asked for: each takes half a gigabyte and more.
_MOST = 8
#: Seconds without a worker after which a line says so.
_PATIENCE = 60.0
_KEYS = ("cluster", "address", "workers", "threads", "wait", "options")


class ClusterError(OSError):
    """Workers that can't be had, or were lost for good. Says which, why, and what to do about it."""


@dataclass(frozen=True)
class Engine:
    """Workers of Dask, to be had for the length of a ``with engine.connect() as client`` block.

    A second block is a second cluster, or a second connection to the same one: what a sweep does when it
    has lost the first.

    Attributes:
        about: what it is, in words.
        workers: how many are meant to be there.
        threads: of each run; None leaves torch's own number.
        connect: yields a `distributed.Client` that at least one worker listens to.
    """

    about: str
    workers: int
    threads: int | None
    connect: Callable[[], AbstractContextManager[Client]] = field(repr=False)


def open_engine(
    *,
    workers: int | None = None,
    threads: int | None = None,
    scheduler: str | None = None,
    cluster: str | Path | None = None,
    wait: float = 600.0,
    deaths: int = 3,
) -> Engine:
    """Return where a sweep is to be carried out; nothing is started yet.

    Args:
        workers: processes on this machine (by default one a GPU, without a GPU one a core, at most
            eight), or jobs of the cluster.
        threads: of each run; by default the machine's cores shared out, elsewhere as the worker has it.
        scheduler: address of a Dask scheduler that runs already.
        cluster: YAML file that says which cluster to ask for workers, see ``experiments/clusters``.
        wait: seconds to wait for a scheduler and a first worker that aren't there, also when they are lost.
        deaths: of workers at one run, after which the run is given up.

    Raises:
        OSError: the file can't be read.
        ParameterError: it is no such file; or both a scheduler and a cluster are given.
        ClusterError: the package for that kind of cluster is not installed.
    """
    if scheduler and cluster:
        raise ParameterError("--scheduler and --cluster are two ways to the workers: choose")
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ParameterError(f"--{name} is {value}, expected 1 or more")
    if cluster:
        return _from_file(Path(cluster), workers, threads, wait, deaths)
    if scheduler:
        return _at(scheduler, workers, threads, wait)
    return _local(workers, threads, deaths)


def _local(workers: int | None, threads: int | None, deaths: int) -> Engine:
    import torch

    gpus, cores = torch.cuda.device_count(), _cores()
    workers = workers or gpus or min(cores, _MOST)
    threads = threads or max(cores // workers, 1)

    @contextmanager
    def connect() -> Iterator[Client]:
        import dask
        from distributed import Client, Nanny, Scheduler, SpecCluster

        # On the loopback address alone: whoever reaches a scheduler can run code on its workers.
        home = {"host": "127.0.0.1", "dashboard": False}
        each = {"nthreads": 1, "memory_limit": 0, "silence_logs": 50, **home}
        spec = {
            i: {"cls": Nanny, "options": {**each, "env": _environment(i, gpus, threads)}}
            for i in range(workers)
        }
        chief = {**home, "dashboard_address": "127.0.0.1:0", "allowed_failures": deaths - 1}
        chief = {"cls": Scheduler, "options": chief}
        with ExitStack() as stack:
            stack.enter_context(dask.config.set(_WORKERS))
            try:
                made = stack.enter_context(SpecCluster(spec, chief, silence_logs=50))
            except RuntimeError as error:
                raise ClusterError(
                    f"the workers on this machine did not start ({error}); in a script, keep what starts "
                    "them below if __name__ == '__main__', since each worker imports the script"
                ) from error
            yield stack.enter_context(Client(made))

    kind = f", one GPU each of {gpus}" if gpus else ""
    about = f"{workers} worker(s) on this machine{kind}, {threads} thread(s) each"
    return Engine(about, workers, threads, connect)


def _cores() -> int:
    # What a container or a queue leaves us of the machine; not every system tells.
    asked = getattr(os, "sched_getaffinity", None)
    return len(asked(0)) if asked else os.cpu_count() or 1


def _environment(number: int, gpus: int, threads: int) -> dict[str, str]:
    """Return the variables of a local worker: its share of cores and its GPU."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    shares = dict.fromkeys(names, str(threads))
    return {**shares, "CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else shares


def _at(address: str, workers: int | None, threads: int | None, wait: float) -> Engine:
    @contextmanager
    def connect() -> Iterator[Client]:
        from distributed import Client

        try:
            client = Client(address, timeout=wait)
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address} ({error}); start one (dask scheduler) and its "
                "workers (dask worker ADDRESS --nthreads 1), or leave out --scheduler"
            ) from error
        with client:
            _wait_for_worker(client, address, wait)
            yield client

    return Engine(f"the workers of {address}", workers or 1, threads, connect)


def _from_file(
    path: Path, workers: int | None, threads: int | None, wait: float, deaths: int
) -> Engine:
    _, values = read_yaml(path)
    kind = values.get("cluster") or "local"
    if odd := set(values) - set(_KEYS):
        raise ParameterError(
            f"{path}: {', '.join(sorted(odd))} is not known; there are {', '.join(_KEYS)}"
        )
    _check_values(path, values)
    workers, threads = workers or values.get("workers"), threads or values.get("threads")
    if kind == "local":
        if address := values.get("address"):
            return _at(address, workers, threads, values.get("wait", wait))
        return _local(workers, threads, deaths)
    if kind not in tuple(CLUSTERS):
        raise ParameterError(
            f"{path}: unknown cluster {kind!r}; choose from local, {', '.join(CLUSTERS)}"
        )
    if workers is None:
        raise ParameterError(f"{path}: how many workers? Give 'workers: 8', or --workers 8")
    make = _cluster_class(kind)
    options = values.get("options") or {}

    @contextmanager
    def connect() -> Iterator[Client]:
        import dask
        from distributed import Client

        with ExitStack() as stack:
            stack.enter_context(
                dask.config.set({"distributed.scheduler.allowed-failures": deaths - 1})
            )
            try:
                made = stack.enter_context(make(**options))
                made.scale(workers)
                client = stack.enter_context(Client(made))
            except (OSError, TypeError, ValueError, RuntimeError) as error:
                raise ClusterError(f"{path}: no {kind} cluster: {error}") from error
            _wait_for_worker(client, kind, values.get("wait", wait))
            yield client

    return Engine(f"{workers} worker(s) of {kind} ({path.name})", workers, threads, connect)


def _check_values(path: Path, values: dict[str, Any]) -> None:
    """Find values of the wrong kind in a cluster file.

    Raises:
        ParameterError: there is one; says which.
    """
    for name in ("workers", "threads"):
        value = values.get(name, 1)
        if type(value) is not int or value < 1:
            raise ParameterError(f"{path}: {name} is {value!r}, expected a number of 1 or more")
    wait = values.get("wait", 1)
    if type(wait) not in (int, float) or not 0 < wait < 1e8:
        raise ParameterError(f"{path}: wait is {wait!r}, expected seconds")
    if not isinstance(values.get("address", ""), str):
        raise ParameterError(f"{path}: address is {values['address']!r}, expected tcp://HOST:PORT")
    options = values.get("options") or {}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ParameterError(f"{path}: below options, lines 'name: value' are expected")


def _cluster_class(kind: str) -> Callable[..., Any]:
    module, name, extra = CLUSTERS[kind]
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except ImportError as error:
        raise ClusterError(
            f"clusters of the kind {kind} need a package that isn't here ({error}): "
            f"pip install 'r2l[{extra}]'"
        ) from error


def _wait_for_worker(client: Client, what: str, wait: float) -> None:
    try:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=min(wait, _PATIENCE))
            return
        print(f"still no worker of {what}; its own queue and logs say why", file=sys.stderr)
        client.wait_for_workers(1, timeout=max(wait - _PATIENCE, 0.01))
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no worker of {what} came within {wait:g} s; look at the cluster's own queue and logs"
        ) from error
