"""`live`: a run on the reader's own input, behind a button, in a thread, with progress and cancel."""

import inspect
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import plotly.graph_objects as go

from .frontend import View, shown
from .inputs import as_input
from .payload import MIME, build, payload_json
from .recorded import PLOTLY_MIME, WIDGET_MIME, describe_sweep, fallback
from .theme import TEMPLATE, blank

HOW = "This one runs live: open the notebook in JupyterLab, run its cells and press Run. Below is a recorded run."
TELL_S = 0.1  # at most ten progress messages a second
DRAW_S = 0.25  # at most four partial pictures a second


class Cancelled(Exception):
    """Raised by `progress` inside a run that the reader has cancelled. Let it pass."""


class LiveExplorer:
    """A form over a run, and the picture of its result. Display it as the last line of a cell.

    After a crash or a cancel it says what happened, keeps the last picture and takes the next run.
    result: what the last finished run returned, or None.
    """

    alive: ClassVar[weakref.WeakValueDictionary] = weakref.WeakValueDictionary()  # by digest when made

    def __init__(self, run: Callable[[dict, Callable], Any], figure: Callable[..., go.Figure], recorded: Any,
                 inputs: Mapping[str, Any], sweep: Any = None) -> None:  # fmt: skip
        self.run, self.figure_function = run, figure
        self.inputs = {name: as_input(name, given, run) for name, given in inputs.items()}
        self.result: Any = None
        self.sweep = describe_sweep(sweep)
        self.payload = self._picture(recorded, self.defaults())
        self.state = {"running": False, "fraction": 0.0, "remaining_s": None, "message": "", "bad": False}
        self._lock = threading.RLock()
        self._turn = 0  # number of the run that may report; a cancelled run has lost its turn
        self._thread: threading.Thread | None = None
        self._view: View | None = None
        self.alive[self.digest] = self

    def defaults(self) -> dict[str, Any]:
        """The inputs as first shown."""
        return {name: given.default() for name, given in self.inputs.items()}

    @property
    def digest(self) -> str:
        """16 hex digits of the data of the picture now shown."""
        return self.payload["digest"]

    @property
    def choices(self) -> dict[str, Any]:
        """A live explorer has no recorded choices."""
        return {}

    def figure(self) -> go.Figure:
        """The figure of the last result, or of the recorded one."""
        return go.Figure(self._drawn)

    def start(self, **values: Any) -> None:
        """Run in the background; values left out are the defaults. RuntimeError while a run goes on."""
        with self._lock:
            if self.state["running"]:
                raise RuntimeError("a run is going on; cancel it first")
            self._turn += 1
            before, inputs = self._thread, {**self.defaults(), **values}
            self._tell(running=True, fraction=0.0, remaining_s=None, message="Running", bad=False)
            self._thread = threading.Thread(target=self._work, args=(self._turn, inputs, before), daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Stop at once as far as the reader is concerned: the form is free again, the run ends at its next `progress`."""
        with self._lock:
            if self.state["running"]:
                self._turn += 1
                self._tell(running=False, remaining_s=None, message="Cancelled. The picture is the last one drawn.")

    def wait(self, timeout_s: int | float | None = None) -> bool:
        """Wait until the background thread has ended; False if it has not within `timeout_s`."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def _work(self, turn: int, inputs: dict[str, Any], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # a cancelled run may still be on its way to its next `progress`
        started = time.perf_counter()
        told = drawn = started

        def progress(fraction: Any, partial: Any = None) -> None:
            """Report the share that is done (0 to 1) and, if there is one, a partial result to draw."""
            nonlocal told, drawn
            if turn != self._turn:
                raise Cancelled
            now = time.perf_counter()
            if partial is not None and now - drawn >= DRAW_S:
                self._draw(turn, partial, inputs)
                drawn = time.perf_counter()
            if now - told >= TELL_S:
                told = now
                share = min(max(float(fraction), 0.0), 1.0)
                left = (now - started) * (1 - share) / share if share > 0 else None
                self._report(turn, fraction=share, remaining_s=left)

        try:
            progress(0.0)
            result = self.run(inputs, progress)
            self._draw(turn, result, inputs)
        except Cancelled:
            self._report(turn, running=False, remaining_s=None, message="The run stopped itself.")
        except Exception as error:  # whatever the run does, the form must come back
            text = f"The run failed: {type(error).__name__}: {error}"
            self._report(turn, running=False, remaining_s=None, message=text, bad=True)
        else:
            took = time.perf_counter() - started
            with self._lock:
                if turn == self._turn:
                    self.result = result
                    self._tell(running=False, fraction=1.0, remaining_s=None, message=f"Done in {took:.1f} s.")

    def _picture(self, result: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        def figure(result: Any) -> go.Figure:
            fig = blank("Press Run", "", "") if result is None else self.figure_function(result, **self._known(inputs))
            self._drawn = fig
            return fig

        figure.__name__ = getattr(self.figure_function, "__name__", "figure")
        payload = build(figure, result, [], sweep=self.sweep, live=HOW)
        return {**payload, "template": TEMPLATE}

    def _known(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs that the figure function takes."""
        parameters = inspect.signature(self.figure_function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return inputs
        return {p.name: inputs[p.name] for p in list(parameters)[1:] if p.name in inputs}

    def _draw(self, turn: int, result: Any, inputs: dict[str, Any]) -> None:
        payload = self._picture(result, inputs)
        with self._lock:
            if turn == self._turn:
                self.payload = payload
                if self._view is not None:
                    self._view.payload = payload_json(payload)

    def _report(self, turn: int, **change: Any) -> None:
        with self._lock:
            if turn == self._turn:
                self._tell(**change)

    def _tell(self, **change: Any) -> None:
        self.state = {**self.state, **change}
        if self._view is not None:
            self._view.state = self.state

    def _on_message(self, _view: Any, content: dict[str, Any], buffers: list[Any]) -> None:
        if content.get("do") == "cancel":
            return self.cancel()
        if content.get("do") != "run":
            return None
        try:
            raw = content["values"]
            values = {name: given.parse(raw.get(name), buffers) for name, given in self.inputs.items()}
            self.start(**values)
        except (ValueError, RuntimeError) as error:
            self._tell(message=str(error), bad=True)
        return None

    def view(self) -> View:
        """The widget; made anew if it was closed."""
        if self._view is None or self._view.comm is None:
            declared = [given.to_json(name) for name, given in self.inputs.items()]
            self._view = View(payload=payload_json(self.payload), inputs=declared, state=self.state)
            self._view.on_msg(self._on_message)
        return self._view

    def __repr__(self) -> str:
        return f"LiveExplorer {self.payload['name']}: {', '.join(self.inputs) or 'no inputs'}; data {self.digest}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": shown(self.view()).model_id}
        return {WIDGET_MIME: view, **self.saved()}

    def saved(self) -> dict[str, Any]:
        """What stays in the notebook: the recorded picture as payload and as plotly JSON, and one line of text."""
        return {MIME: self.payload, PLOTLY_MIME: fallback(self.payload), "text/plain": repr(self)}


def live(run: Callable[[dict, Callable], Any], figure: Callable[..., go.Figure], *, recorded: Any = None,
         sweep: Any = None, **inputs: Any) -> LiveExplorer:  # fmt: skip
    """Wire inputs, a Run button, progress and Cancel to a function.

    run(inputs, progress) -> result, called in a thread with a dict of checked inputs. It calls
    `progress(fraction, partial_result)` at least once a second, which raises `Cancelled` after a cancel.
    figure(result, **inputs) -> go.Figure; gets those inputs that its signature names; drawn for partial results too.
    recorded: a result to show before the first run and in the static edition.
    inputs: `text(...)`, `picture(...)`, `file(...)`, `choice(...)`, or a list of values.

    >>> from frugal.explore import live, text
    >>> form = live(lambda inputs, progress: len(inputs["prompt"]), figure, recorded=3, prompt=text("Prompt"))  # doctest: +SKIP
    """
    return LiveExplorer(run, figure, recorded, inputs, sweep)
