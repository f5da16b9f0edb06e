"""JupyterLab, Voila and Chromium for the tests: started with nothing of the user's, ended after."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# Nothing but the page: no sandbox (which containers lack), no updates, no calls home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are in the page, not only those in sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
IS_OPEN = """(path) => {
    const widget = window.jupyterapp?.shell?.currentWidget;
    return widget?.context?.path === path && Boolean(widget.sessionContext);
}"""
# Waits for the notebook's kernel, then runs all cells and resolves when the last has run.
RUN_ALL = """async () => {
    const app = window.jupyterapp;
    const context = app.shell.currentWidget.sessionContext;
    await context.ready;
    await context.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells');
}"""
# Notes when keys are pressed and when pictures in an element are drawn: what a person waits for.
WATCH_PICTURES = """(element) => {
    window.r2lShown = [];
    window.r2lPressed = [];
    addEventListener('keydown', () => window.r2lPressed.push(performance.now()), true);
    element.addEventListener('load', () => window.r2lShown.push(performance.now()), true);
}"""

# The pictures in an element as they are at this moment, base64 PNGs.
PICTURES = """(element) => [...element.querySelectorAll('img')]
    .filter(img => img.offsetParent && img.naturalWidth)
    .map(img => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
        canvas.getContext('2d').drawImage(img, 0, 0);
        return canvas.toDataURL('image/png').split(',')[1];
    })"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(home: Path) -> dict[str, str]:
    """The environment with Jupyter's folders in a throw-away place."""
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    settings = home / "settings"
    for name, values in LAB_SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), "utf-8")
    return {
        **os.environ,
        **folders,
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }


def wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    """Wait until a server answers; say what it wrote if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"no answer from {address}:\n{log.read_text('utf-8')[-2000:]}")


@contextlib.contextmanager
def server(module: str, arguments: list[str], home: Path, check: str) -> Iterator[str]:
    """Start `python -m module` on a free port, give its address, and end it and its kernels."""
    home.mkdir(parents=True, exist_ok=True)
    address, log = f"http://127.0.0.1:{(port := free_port())}", home / "server.log"
    command = [sys.executable, "-m", module, "--no-browser", f"--port={port}", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(home), stdout=out, stderr=out)
        try:
            wait_for(address + check, process, log)
            yield address
        finally:
            process.terminate()  # Jupyter's servers end their kernels on this signal
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def lab(folder: Path, home: Path) -> contextlib.AbstractContextManager[str]:
    """JupyterLab over a folder."""
    options = [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
        "--allow-root",
    ]
    return server("jupyterlab", options, home, "/api")


def voila(folder: Path, home: Path) -> contextlib.AbstractContextManager[str]:
    """Voila over a folder: each notebook as a page without code, run when it is opened."""
    return server("voila", [str(folder), "--show_tracebacks=True"], home, "/voila/static/voila.js")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser: the system's Chromium, nothing downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
