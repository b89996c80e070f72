"""The `frugal` command.

Every command says what it wrote and where. What the reader can put right (an unknown name, no network, a full disk)
is one line on stderr and exit code 2; FRUGAL_DEBUG=1 shows the traceback as well. Heavy imports happen inside the
commands, so that `frugal --help` and `frugal papers` answer at once.
"""
import functools
import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="frugal", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
                  help="Frugal: an interactive explainer of efficient generative inference.",
                  context_settings={"help_option_names": ["-h", "--help"]})

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to; made if missing.")]


class StudentFormat(str, Enum):
    """What a student copy is graded with."""

    plain = "plain"
    nbgrader = "nbgrader"
    otter = "otter"


def readers_errors(command):
    """Turn what a reader can put right into one line on stderr and exit code 2."""
    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:                    # `frugal papers | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (ValueError, OSError, ImportError, RuntimeError, LookupError) as error:
            if os.environ.get("FRUGAL_DEBUG") or isinstance(error, typer.Exit | typer.Abort):
                raise
            text = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, KeyError | IndexError):
                text = f"{type(error).__name__}: {text} (FRUGAL_DEBUG=1 shows where)"
            typer.echo(f"frugal: {text}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("frugal: stopped", err=True)
            raise typer.Exit(130) from None
    return wrapped


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from frugal import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
@readers_errors
def lab(port: Annotated[int, typer.Option(help="Port on 127.0.0.1; the next free one if taken.", min=1, max=65535)] = 8888,
        browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True) -> None:
    """Open the notebooks in JupyterLab, on this machine only."""
    from frugal.lab import serve

    raise typer.Exit(serve(port=port, browser=browser))


@app.command()
@readers_errors
def fetch(name: Annotated[str, typer.Argument(help="Name of the model.")] = "smollm2-135m") -> None:
    """Fetch the language model once, and check its hash. The only command that uses the network."""
    from frugal.core.fetch import fetch as get

    path = get(name, progress=sys.stderr.isatty())
    typer.echo(f"{name}: {path}")


@app.command()
@readers_errors
def sweep(family: Annotated[str, typer.Argument(help="Technique family, e.g. kv_eviction.")],
          out: Annotated[Path, typer.Option("--out", help="File to write: .json, .csv or .parquet.")],
          methods: Annotated[str, typer.Option(help="Comma-separated method names; all if not given.")] = "",
          budgets: Annotated[str, typer.Option(help="Comma-separated: fractions up to 1.0, or whole numbers; the workload's own if not given.")] = "",
          workload: Annotated[str, typer.Option(help="Workload of the family; its first one if not given.")] = "",
          seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 1,
          jobs: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1) -> None:
    """Run methods over budgets and write one row per run."""
    from frugal import tables
    from frugal.core.sweep import Sweep

    tables.check_suffix(out)                       # before the hours of work, not after
    declared = Sweep(family, listed(methods), [number(text) for text in listed(budgets) or []] or None,
                     workload or None, seeds)
    rows = declared.run(jobs=jobs, progress=sys.stderr.isatty())
    tables.write(rows, out)
    failed = int(rows["error"].astype(bool).sum())
    typer.echo(f"{out}: {len(rows)} rows" + (f", {failed} failed (see the column 'error')" if failed else ""))


@app.command()
@readers_errors
def claims(family: Annotated[str | None, typer.Option(help="One family only.")] = None, as_json: Json = False) -> None:
    """What the papers say, what was found here, and the verdict."""
    from frugal import tables
    from frugal.core.claims import ledger

    rows = ledger(family)
    typer.echo(tables.as_json(rows) if as_json else tables.as_text(rows, tables.CLAIM_COLUMNS))


@app.command()
@readers_errors
def papers(family: Annotated[str | None, typer.Option(help="One family only.")] = None, as_json: Json = False,
           bibtex: Annotated[str, typer.Option(help="Print the citation of this paper ('all' for all) and stop.")] = ""
           ) -> None:
    """The fifty-six papers, by family."""
    from frugal.core import papers as records

    chosen = records.papers(family)
    if bibtex:
        typer.echo("\n\n".join(p.bibtex() for p in (chosen if bibtex == "all" else [records.paper(bibtex)])))
    elif as_json:
        typer.echo(json.dumps([p.as_dict() for p in chosen], indent=1, ensure_ascii=False))
    else:
        width = max(len(p.key) for p in chosen)
        for name in dict.fromkeys(p.family for p in chosen):
            typer.echo(f"{name}: {records.FAMILIES[name]}")
            for p in (p for p in chosen if p.family == name):
                typer.echo(f"  {p.key:{width}}  {p.arxiv}  {'built  ' if p.built else 'planned'}  {p.title}")


@app.command()
@readers_errors
def book(out: Out) -> None:
    """Build the static edition: a site that opens from disk, without server or network."""
    from frugal.explore.book import build

    typer.echo(f"{build(out) or out}")


@app.command()
@readers_errors
def student(out: Out, format: Annotated[StudentFormat, typer.Option(help="What the copies are graded with.")]
            = StudentFormat.plain) -> None:
    """Make student copies of the notebooks, without solutions."""
    from frugal.explore.student import make

    typer.echo(f"{make(format.value, out) or out}")


@app.command()
@readers_errors
def reproduce(key: Annotated[str, typer.Argument(help="Key of a claim, or name of a figure.")], out: Out) -> None:
    """Write one claim or figure with its data, the sweep that makes it, and the citations."""
    from frugal.explore.reproduce import reproduce as make

    typer.echo(f"{make(key, out) or out}")


def listed(text: str) -> list[str] | None:
    """Comma-separated names, None for an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()] or None


def number(text: str) -> int | float:
    """A budget as typed: "64" is a count, "0.5" and "1.0" are fractions.

    Raises ValueError for anything else.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value <= 1:
        raise ValueError(f"budget {text.strip()!r}: write a fraction above 0 and up to 1.0, or a whole number")
    return value


def main() -> None:
    """Entry point of the `frugal` script."""
    app()


if __name__ == "__main__":
    main()
