"""One JupyterLab and one Chromium for all browser tests of a worker. Without a browser they skip; in CI they fail."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lab.py, drive.py and examples.py are shared by the tests here

import lab as lab_module  # noqa: E402


@pytest.fixture(scope="session")
def chromium():
    """A running browser."""
    if lab_module.chromium() is None:
        message = "no Chromium or Chrome found (Debian: apt-get install chromium; or set FRUGAL_CHROMIUM)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with lab_module.browser() as running:
        yield running


@pytest.fixture(scope="session")
def jupyterlab(tmp_path_factory, chromium):
    """(url, token, folder) of a JupyterLab that serves an empty folder."""
    folder = tmp_path_factory.mktemp("lab")
    with lab_module.lab(folder) as (url, token):
        yield url, token, folder
