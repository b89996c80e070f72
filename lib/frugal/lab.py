"""`frugal lab`: the notebooks in JupyterLab, reachable from this machine only, behind a token."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

FIRST = "00_start_here.ipynb"


def notebooks_folder() -> Path:
    """Folder to open: the repository's own notebooks, or a copy of the installed ones beside the reader's files.

    The copy goes to ./frugal-notebooks and keeps what the reader has changed there: a file that exists is left alone.
    Raises FileNotFoundError when there are no notebooks at all.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "notebooks" / FIRST).is_file():
        return checkout / "notebooks"
    installed = Path(sysconfig.get_path("data")) / "share" / "frugal" / "notebooks"
    if not (installed / FIRST).is_file():
        raise FileNotFoundError(f"no notebooks in {checkout / 'notebooks'} or {installed}; install frugal again")
    mine = Path.cwd() / "frugal-notebooks"
    mine.mkdir(exist_ok=True)
    for source in sorted(installed.glob("*.ipynb")):
        if not (mine / source.name).exists():
            shutil.copyfile(source, mine / source.name)
    return mine


def command(folder: Path, port: int, browser: bool) -> list[str]:
    """The JupyterLab command line: loopback only, and nothing that asks other machines (news, extension manager)."""
    settings = Path(__file__).parent / "lab_settings"
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [sys.executable, "-m", "jupyterlab", *root, *([] if browser else ["--no-browser"]),
            "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}",
            f"--LabApp.default_url=/lab/tree/{FIRST}", f"--LabApp.app_settings_dir={settings}",
            "--LabApp.extension_manager=readonly"]


def serve(port: int = 8888, browser: bool = True) -> int:
    """Run JupyterLab until it is stopped; returns its exit code. Jupyter makes the token and prints the address."""
    folder = notebooks_folder()
    print(f"Notebooks: {folder}. JupyterLab prints its address below (the next port if {port} is taken); Ctrl-C stops it.",
          flush=True)
    try:
        return subprocess.run(command(folder, port, browser), check=False).returncode
    except KeyboardInterrupt:
        return 0
