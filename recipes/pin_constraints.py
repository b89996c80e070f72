"""Write constraints.txt: the exact version of everything that `make lab` and `make test` install.

    .venv/bin/python recipes/pin_constraints.py        resolve pyproject.toml afresh (network: the package index)

The resolver's own answer is written down (`pip install --dry-run --report`), so nothing that merely happens to lie in
the environment is pinned. Two versions are chosen by hand, below, and a platform's own suffix (+cpu) is cut off.
"""
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = {
    "torch": ("==2.13.0", "the version that results were recorded with"),
    "jsonschema": ("<4.25", "newer ones compile grammars at import: seconds in every kernel (jsonschema issue 1428)"),
}


def resolve() -> dict[str, str]:
    """Name to version of all that pip would install for the package with all of its extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder, "wanted.txt"), Path(folder, "report.json")
        wanted.write_text("".join(f"{name}{bound}\n" for name, (bound, _) in CHOSEN.items()))
        subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed",
                        "--report", str(report), "-c", str(wanted), f"{ROOT}[{','.join(extras)}]"], check=True)
        rows = json.loads(report.read_text())["install"]
    names = {re.sub(r"[-_.]+", "-", row["metadata"]["name"]).lower(): row["metadata"]["version"] for row in rows}
    return {name: version.split("+")[0] for name, version in sorted(names.items()) if name != "frugal"}


def main() -> None:
    lines = ["# Exact versions of everything that gets installed. Written by recipes/pin_constraints.py; use it with",
             "#     pip install -c constraints.txt .",
             *(f"# {name}{bound}: {reason}" for name, (bound, reason) in CHOSEN.items()),
             *(f"{name}=={version}" for name, version in resolve().items())]
    (ROOT / "constraints.txt").write_text("\n".join(lines) + "\n")
    print(f"constraints.txt: {len(lines) - 2 - len(CHOSEN)} packages")


if __name__ == "__main__":
    main()
