"""Kernels that are forked from one process, which has imported what the lessons import.

A kernel imports torch, lightning, mlflow and matplotlib, which takes 8 seconds of a core; papermill's and the
browser's tests start some twenty. These are kernels like any other, started by a kernel spec of the common
name: only the process that Jupyter starts, and signals, or kills, hands all on to one that was forked. That
a lesson runs in a kernel made from the ground up, nbval shows.
"""

import atexit
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def forked_kernels(home: Path) -> Iterator[None]:
    """Let all that is started in the block have such kernels, on Linux; a GPU's process may not be forked."""
    import pytest
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        yield
        return
    spec = home / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-I", "-S", __file__, str(home / "socket"), "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}), "utf-8")
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(str(home / "socket"))
        listener.listen()
        patch.setenv("JUPYTER_PATH", str(home))
        descriptor = listener.fileno()
        server = [sys.executable, "-m", "tests.forked_kernels", str(descriptor)]
        # As a kernel has it before it imports matplotlib.
        environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        process = subprocess.Popen(server, pass_fds=[descriptor], env=environment, stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline(), "all is imported"
            yield
        finally:
            process.kill()
            process.wait()


def copied(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a function that makes mlflow's tables by copying a file, which the first one to ask makes."""
    template = Path(os.environ["R2L_COPIED_STORE"])

    def copy(path: Path) -> None:
        if not template.exists():
            make(own := template.with_suffix(f".{os.getpid()}"))
            own.replace(template)
        shutil.copyfile(template, path)

    return copy


def serve(listener: socket.socket) -> None:
    """Fork a kernel for each that asks."""
    import ipywidgets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mlflow  # noqa: F401
    from ipykernel.kernelapp import IPKernelApp

    import r2l.training.experiment  # noqa: F401
    from r2l.training.tracking import store

    store._make_tables = copied(store._make_tables)
    gc.freeze()  # else looking for garbage would copy to each kernel what all have in common
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asking, _ = listener.accept()
        message, streams, *_ = socket.recv_fds(asking, 1 << 20, 3)
        if os.fork() == 0:
            break
        asking.close()
        for stream in streams:
            os.close(stream)
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    arguments, folder, environment = json.loads(message)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    # The parent that it looks for is not the one that it has.
    os.environ.update({name: value for name, value in environment.items() if name != "JPY_PARENT_PID"})
    asking.sendall(str(os.getpid()).encode())
    threading.Thread(target=_end_with, args=(asking,), daemon=True).start()
    IPKernelApp.launch_instance(argv=arguments)
    atexit._run_exitfuncs()
    os._exit(0)  # to take apart what was imported would copy that too


def _end_with(asking: socket.socket) -> None:
    asking.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def stand_in(address: str, *arguments: str) -> None:
    """Be the process that Jupyter knows: hand on signals, and end with the kernel, as it ends with this."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        message = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [message], [0, 1, 2])
        kernel = int(server.recv(20))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda signalled, _: os.kill(kernel, signalled))
        server.recv(1)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(socket.socket(fileno=int(sys.argv[1])))
    else:
        stand_in(*sys.argv[1:])
