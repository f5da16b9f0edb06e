"""How much memory a development takes at its peak, each measured in a process of its own.

``python -m benchmarks.memory NAME HEIGHT WIDTH`` is that process; it prints one number, in bytes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.calls import DEAREST, forward_call, gradient_call
from benchmarks.workload import Workload
from r2l.isp import StaticISP
from r2l.isp.parametrized import ParametrizedISP

NAMES = (
    "r2l bi,s,ga",
    f"r2l {DEAREST}",
    "r2l parametrized, forward",
    "r2l parametrized, forward + backward",
    "recipe bi,s,ga",
)


def _call(name: str, work: Workload) -> Callable[[], object]:
    owner, what = name.split(" ", 1)
    if owner == "recipe":
        # Here, so that the others need not load it.
        from benchmarks.libraries import recipe_call

        return recipe_call(work, [what])
    if what == "parametrized, forward":
        return forward_call(ParametrizedISP(work.camera), work.raw)
    if what == "parametrized, forward + backward":
        return gradient_call(ParametrizedISP(work.camera), work.raw, work.gradient)
    return forward_call(StaticISP.from_code(what, work.camera), work.raw)


def _peak() -> int:
    """Return the most memory that this process held at a time since the last `_forget_peak`, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not for Linux, where it begins with the peak of the process that started this one.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Let the peak begin anew from what is held now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def measure_here(name: str, height: int, width: int) -> int:
    """Return by how many bytes a development raises the peak of this process, its result included.

    What is there before doesn't count: Python, the libraries, the raw frame, and what they set up at
    their first use, on a small frame.
    """
    small, work = Workload("small", 1, 64, 64), Workload("frame", 1, height, width)
    # Random numbers, so that no temporary of a scene raises the peak before the start.
    work.raw = torch.rand(work.shape)
    work.mosaics = list(work.raw[:, 0].numpy())
    if name.endswith("backward"):
        _ = work.gradient
    _call(name, small)()
    call = _call(name, work)
    _forget_peak()
    before = _peak()
    result = call()
    peak = _peak()
    del result
    return peak - before


def peaks(height: int, width: int, names: tuple[str, ...] = NAMES) -> Iterator[dict[str, object]]:
    """Yield for each name its peak in MiB and as a multiple of the float32 picture."""
    for name in names:
        command = [sys.executable, "-m", "benchmarks.memory", name, str(height), str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            yield {"contender": name, "note": reason[0]}
            continue
        taken = int(done.stdout.split()[-1])
        multiple = taken / (3 * 4 * height * width)
        yield {"contender": name, "MiB": taken / 2**20, "x float32 picture": multiple}


if __name__ == "__main__":
    print(measure_here(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
