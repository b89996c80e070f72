"""Every notebook in a real JupyterLab: every control moved, every picture compared. New notebooks are found by folder."""

from pathlib import Path

import pytest
from drive import drive_notebook
from examples import write
from lab import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.browser


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_control_of_every_notebook(notebook: Path, chromium, jupyterlab):
    url, token, folder = jupyterlab
    driven = drive_notebook(chromium, url, token, folder, notebook)
    print(f"{notebook.name}: {driven}")
    assert driven["explorers"] + driven["live"] > 0, "no explorer was found on the page"


def test_the_example_notebook(tmp_path, chromium, jupyterlab):
    url, token, folder = jupyterlab
    driven = drive_notebook(chromium, url, token, folder, write(tmp_path / "example.ipynb"))
    assert driven == {"explorers": 2, "controls": 3, "live": 1, "pictures": 18}
