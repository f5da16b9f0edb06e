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
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
LAB_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # All cells are in the page, not only those in sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
}
VOILA_IS_UP = "/voila/static/voila.js"
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
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()"
DARK = """() => window.jupyterapp.commands.execute(
    'apputils:change-theme', {theme: 'JupyterLab Dark'})"""
# What of an explorer can't be used or read: a control that is cut off, a picture that is and can't be
# scrolled to, text with less contrast to its ground than 4.5 (WCAG 2.2, 1.4.3), unless it stands still.
FAULTS = """(explorer) => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
    const above = (e) => e ? [e, ...above(e.parentElement)] : [];
    const ground = (e) => above(e).map(a => numbers(getComputedStyle(a).backgroundColor))
        .find(c => c.length < 4 || c[3] > 0.5) ?? [255, 255, 255];
    const faults = [];
    for (const e of explorer.querySelectorAll('*')) {
        const box = e.getBoundingClientRect();
        if (!box.width || !box.height) continue;
        const control = e.matches('select, input, button, .noUi-handle, .widget-readout');
        if (control || e.matches('img, svg')) {
            const edge = above(e.parentElement).find(a => {
                const {left, right} = a.getBoundingClientRect();
                const hides = getComputedStyle(a).overflowX !== 'visible';
                return hides && (box.right > right + 1 || box.left < left - 1);
            });
            const scrolls = edge && /auto|scroll/.test(getComputedStyle(edge).overflowX);
            if (edge && (control || !scrolls)) faults.push(`${e.className} cut off at ${box.right}`);
        }
        const text = [...e.childNodes].find(n => n.nodeType === 3 && n.textContent.trim());
        if (text && !e.closest(':disabled, option')) {
            const [a, b] = [numbers(getComputedStyle(e).color), ground(e)].map(light);
            const contrast = Math.max(a, b) / Math.min(a, b);
            if (contrast < 4.5) faults.push(`"${text.textContent}" at ${contrast}`);
        }
    }
    return faults;
}"""
# What turns while it waits is drawn sixty times a second.
STILL = "document.adoptedStyleSheets = [new CSSStyleSheet()]; "
STILL += "document.adoptedStyleSheets[0].insertRule('* {animation: none !important}')"
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
    folders |= {f"JUPYTERLAB_{k}_DIR": str(home / k.lower()) for k in ("SETTINGS", "WORKSPACES")}
    return os.environ | folders


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
    # As in tools.early, for the same second.
    run = "import runpy, sys; sys.modules['rfc3987_syntax'] = None; runpy.run_module('%s', None, '__main__')"
    command = [sys.executable, "-c", run % module, f"--port={port}", *arguments]
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
    options = [f"--ServerApp.root_dir={folder}", "--no-browser", "--ServerApp.ip=127.0.0.1", "--allow-root"]
    options += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    return server("jupyterlab", options, home, "/api")


def voila(folder: Path, home: Path) -> contextlib.AbstractContextManager[str]:
    """Voila over a folder, dark: each notebook as a page without code, run when it is opened."""
    options = [str(folder), "--no-browser", "--show_tracebacks=True", "--theme=dark"]
    return server("voila", options, home, VOILA_IS_UP)


def explorer(notebook: Path, visitors: int, home: Path) -> contextlib.AbstractContextManager[str]:
    """What `make explorer` serves: a notebook's sliders, to so many visitors at a time."""
    return server("tools.explorer", [str(notebook), f"--visitors={visitors}"], home, VOILA_IS_UP)


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
