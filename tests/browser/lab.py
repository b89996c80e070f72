"""A real JupyterLab on 127.0.0.1 and a real Chromium, for tests that open notebooks as a reader would."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

REPO = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Cells out of view leave the page unless windowing is off; the news pop-up would cover the notebook.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
# Waits until the kernel is really there: running earlier pops up "Select Kernel" and nothing runs.
RUN_ALL = """async () => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  await jupyterapp.commands.execute('notebook:run-all-cells');
}"""
FAILED = """() => jupyterapp.shell.currentWidget.content.widgets
  .filter((cell) => cell.model.type === 'code' && !(cell.model.getMetadata('tags') ?? []).includes('raises-exception'))
  .flatMap((cell) => cell.model.outputs.toJSON().filter((output) => output.output_type === 'error'))
  .map((output) => output.traceback.join('\\n').replace(/\\x1b\\[[0-9;]*m/g, ''))"""
KERNEL_RUN = """async (code) => {
  const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({code, store_history: false, silent: false});
  let text = '', error = null;
  future.onIOPub = (message) => {
    if (message.header.msg_type === 'stream' && message.content.name === 'stdout') text += message.content.text;
    if (message.header.msg_type === 'error') error = message.content.traceback.join('\\n');
  };
  await future.done;
  if (error) throw new Error(error);
  return text;
}"""


def chromium() -> str | None:
    """Path of the browser: FRUGAL_CHROMIUM, or Debian's chromium, or Chrome; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("FRUGAL_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def lab(folder: Path, theme: str = "JupyterLab Light"):
    """JupyterLab serving `folder`, with its own settings; gives (url, token) and ends the server afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    private = folder / ".jupyter-private"
    settings = private / "settings"
    settings.mkdir(parents=True, exist_ok=True)
    overrides = {**SETTINGS, "@jupyterlab/apputils-extension:themes": {"theme": theme}}
    (settings / "overrides.json").write_text(json.dumps(overrides))
    dirs = {f"JUPYTER_{name}_DIR": str(private / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    library = os.pathsep.join(filter(None, [str(REPO / "lib"), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, **dirs, "PYTHONPATH": library, "OMP_NUM_THREADS": "2"}
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
        f"--LabApp.app_settings_dir={settings}", f"--LabApp.workspaces_dir={private / 'workspaces'}",
    ]  # fmt: skip
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, folder / "lab.log")
            yield f"http://127.0.0.1:{port}", token
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_for(url: str, server: subprocess.Popen, log: Path, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with {server.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"JupyterLab did not answer within {limit_s} s:\n{log.read_text()[-3000:]}")


@contextmanager
def browser():
    """Chromium, headless, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), headless=True, args=CHROMIUM_FLAGS)
        try:
            yield running
        finally:
            running.close()


class Watch:
    """Collects console errors and requests that leave the machine, from the moment the page exists."""

    def __init__(self, page) -> None:
        self.errors: list[str] = []
        self.outside: list[str] = []
        page.on("console", lambda m: m.type == "error" and self.errors.append(f"{m.text} ({m.location.get('url')})"))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", lambda socket: self._request(socket.url))
        page.on("request", lambda request: self._request(request.url))

    def _request(self, url: str) -> None:
        parts = urlparse(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.outside.append(url)

    def check(self) -> None:
        assert not self.outside, f"requests left the machine: {self.outside}"
        assert not self.errors, "console errors:\n" + "\n".join(self.errors)


def open_notebook(page, url: str, token: str, name: str) -> None:
    """Open a notebook and wait until its kernel can take cells."""
    page.goto(f"{url}/doc/tree/{name}?token={token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function("globalThis.jupyterapp?.shell?.currentWidget?.sessionContext", timeout=60_000)


def run_all(page) -> None:
    """Run every cell; comes back when the last one is done. AssertionError when a cell that should not fail does."""
    page.evaluate(RUN_ALL)
    failed = page.evaluate(FAILED)
    assert not failed, "cells failed:\n" + "\n".join(failed)


def kernel(page, code: str) -> str:
    """Run code in the notebook's own kernel and give what it printed."""
    return page.evaluate(KERNEL_RUN, code)
