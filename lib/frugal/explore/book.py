"""The static edition: `frugal book --out DIR` makes a site from the executed notebooks that opens from disk.

Sphinx with myst-nb and furo lays out copies of the committed notebooks; nothing is executed. Figures are drawn by the
same script as in JupyterLab (static/frugal.js) from the data saved in the notebook, equations by a local MathJax, so
the pages need neither a server nor a network. Each notebook also gets a page to print, from its cells tagged `summary`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

from .book_pages import page, summary, title_of
from .frontend import asset_paths
from .notebooks import committed

STATIC = Path(__file__).parent / "static"
MARK = ".frugal-book"  # names the folder as ours, so that building again may replace it
LICENSES = {"plotly-cartesian.LICENSE": STATIC / "plotly-cartesian.LICENSE", "mathjax.LICENSE": STATIC / "mathjax" / "LICENSE"}

INDEX = """# Frugal

An interactive explainer of efficient generative inference. This is the static edition: move any control, with the
mouse or the keyboard; every recorded figure answers without a server. What runs live needs the notebooks:
`make lab` in the repository, or `frugal lab` where Frugal is installed.

{table}

Reading group? Each notebook ends in questions with folded answers, and has one page to print: {prints}.

```{{toctree}}
:hidden:
:caption: Notebooks

{pages}
```

```{{toctree}}
:hidden:
:caption: To print

{summaries}
```
"""


def build(out: Path, notebooks: Sequence[Path] | None = None) -> str:
    """Write the site to `out`; gives a sentence with the page to open and what Sphinx had to say.

    ValueError: `out` holds something else, or a page's figures hold over 3 MB. FileNotFoundError: no notebook is built.
    ImportError: sphinx, myst-nb or furo is missing. RuntimeError: Sphinx failed, with its last lines.
    """
    _check_tools()
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise ValueError(f"{out} exists and is no book; give an empty or a new folder")
    paths = list(committed() if notebooks is None else notebooks)
    if not paths:
        raise FileNotFoundError("no built notebook; run `make notebooks` first")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".frugal-book-", dir=out.parent) as work:
        source, site = Path(work) / "source", Path(work) / "site"
        write_source(paths, source)
        said = _sphinx(source, site)
        _tidy(site)
        shutil.rmtree(out, ignore_errors=True)
        site.rename(out)
    warnings = f"; {said.count('WARNING')} warnings:\n{said}" if said else ""
    return f"{len(paths)} notebooks; open {out / 'index.html'}{warnings}"


def write_source(paths: Sequence[Path], source: Path) -> None:
    """The folder that Sphinx reads: pages, summaries, index, conf.py and the shared scripts."""
    (source / "print").mkdir(parents=True)
    static = source / "_static"
    static.mkdir()
    for asset in [*asset_paths(), STATIC / "book.css", STATIC / "mathjax" / "tex-svg.js"]:
        shutil.copyfile(asset, static / asset.name)
    for name, licence in LICENSES.items():
        shutil.copyfile(licence, static / name)
    rows, prints = ["| notebook | to print |", "|---|---|"], []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        title = title_of(notebook, path.stem)
        short = summary(notebook, title, f"../{path.name}")
        whole = page(notebook)
        if title_of(notebook, "") == "":
            whole.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {title}", id="title"))
        if short is not None:
            whole.cells.append(nbformat.v4.new_markdown_cell(f"[This notebook on one page, to print](print/{path.name})", id="to-print"))
        nbformat.write(whole, source / path.name)
        if short is not None:
            nbformat.write(short, source / "print" / path.name)
            prints.append(f"print/{path.stem}")
        rows.append(f"| [{title}]({path.name}) | {f'[one page](print/{path.name})' if short is not None else ''} |")
    index = INDEX.format(table="\n".join(rows), pages="\n".join(path.stem for path in paths), summaries="\n".join(prints),
                         prints=", ".join(f"[{name.split('/')[1]}]({name}.ipynb)" for name in prints) or "none yet")  # fmt: skip
    (source / "index.md").write_text(index, encoding="utf-8")
    scripts = [path.name for path in asset_paths() if path.suffix == ".js"]
    (source / "conf.py").write_text(CONF.format(scripts=json.dumps(scripts)), encoding="utf-8")


def _sphinx(source: Path, site: Path) -> str:
    """Run Sphinx without its own caches; gives its warnings."""
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-b", "html", "-d", str(source.parent / "doctrees"), str(source), str(site)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False)
    if done.returncode:
        raise RuntimeError(f"Sphinx failed: {' '.join(done.stderr.split()[-60:])}")
    return "\n".join(line.replace(str(source), "").lstrip("/") for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line)


def _tidy(site: Path) -> None:
    """Remove what the site does not need, and mark it as ours."""
    for name in (".buildinfo", "objects.inv", "genindex.html", ".doctrees"):
        (site / name).unlink(missing_ok=True) if not (site / name).is_dir() else shutil.rmtree(site / name)
    for left in [*site.rglob("_sources"), *site.rglob("jupyter_execute")]:
        shutil.rmtree(left)
    (site / MARK).write_text("Made by `frugal book`; it may be built anew here.\n", encoding="utf-8")


def _check_tools() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("sphinx", "myst_nb", "furo") if find_spec(name) is None]
    if missing:
        raise ImportError(f"the static edition needs {', '.join(missing)}; install them with: pip install 'frugal[book]'")


CONF = '''project = "Frugal"
copyright = "the Frugal contributors"
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "mystnb.lexer"]
html_theme = "furo"
html_title = "Frugal"
html_static_path = ["_static"]
html_css_files = ["frugal.css", "book.css"]
html_js_files = {scripts}
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False    # it would ask for the pages, which a browser refuses on file: addresses
html_use_index = False
html_permalinks = True
mathjax_path = "tex-svg.js"
mathjax3_config = {{"options": {{"enableMenu": False}}, "svg": {{"fontCache": "global"}}}}
'''
