"""`live`: runs in the background, progress, cancel, crashes, and the reader's input."""

import io
import threading
import time

import pytest
from frugal.explore import Cancelled, choice, file, live, picture, text
from frugal.explore.inputs import read_picture
from frugal.explore.theme import blank
from PIL import Image


def figure(result, name="no"):
    return blank("Levels", "place", "level (V)").add_scatter(y=result, name=name)


def send(form, **values):
    """What the page sends when Run is pressed."""
    buffers = [value for value in values.values() if isinstance(value, bytes)]
    packed = {k: {"name": f"{k}.png", "buffer": buffers.index(v)} if isinstance(v, bytes) else v for k, v in values.items()}
    form._on_message(None, {"do": "run", "values": packed}, buffers)


def test_a_run_gets_its_inputs_and_draws_its_result():
    form = live(lambda inputs, progress: [inputs["n"], len(inputs["name"])], figure, recorded=[0, 0],
                n=choice([3, 5], default=5), name=text("Name", "x"))  # fmt: skip
    assert form.payload["traces"][0]["y"] == [0, 0] and form.payload["live"].startswith("This one runs live")
    send(form, n=0, name="hello")
    assert form.wait(5)
    assert form.result == [3, 5]
    assert form.payload["traces"][0] == {"name": "hello", "type": "scatter", "y": [3, 5]}
    assert form.state["message"].startswith("Done in") and not form.state["running"]


def test_progress_tells_the_remaining_time_and_draws_partial_results():
    seen = []

    def run(inputs, progress):
        for i in range(10):
            time.sleep(0.06)
            progress((i + 1) / 10, [i])
            seen.append((form.state["fraction"], form.state["remaining_s"], list(form.payload["traces"][0]["y"])))
        return [99]

    form = live(run, figure, recorded=[7])
    form.start()
    assert form.wait(10)
    fractions = [fraction for fraction, _, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] > 0.5
    assert any(left is not None and 0 < left < 2 for _, left, _ in seen)
    assert any(y not in ([7], [99]) for _, _, y in seen)
    assert form.payload["traces"][0]["y"] == [99]


def test_cancel_frees_the_form_at_once_and_ends_the_run():
    ended = threading.Event()

    def run(inputs, progress):
        try:
            while True:
                time.sleep(0.02)
                progress(0.5, [1])
        except Cancelled:
            ended.set()
            raise

    form = live(run, figure, recorded=[7])
    form.start()
    time.sleep(0.1)
    begun = time.monotonic()
    form.cancel()
    assert time.monotonic() - begun < 0.5 and not form.state["running"]
    assert form.state["message"].startswith("Cancelled") and not form.state["bad"]
    assert ended.wait(1)


def test_a_run_that_ignores_cancel_can_no_longer_draw_and_the_next_one_can():
    release = threading.Event()

    def run(inputs, progress):
        if inputs["mode"] == "stuck":
            release.wait(10)
            return [13]
        return [2]

    form = live(run, figure, recorded=[7], mode=["stuck", "quick"])
    form.start(mode="stuck")
    form.cancel()
    form.start(mode="quick")
    release.set()
    assert form.wait(5)
    assert form.result == [2] and form.payload["traces"][0]["y"] == [2]


def test_a_crash_is_told_and_the_next_run_works():
    def run(inputs, progress):
        if inputs["name"] == "bad":
            raise ZeroDivisionError("3 / 0 <script>")
        return [1]

    form = live(run, figure, recorded=[7], name=text("Name", "bad"))
    form.start()
    assert form.wait(5)
    assert form.state["message"] == "The run failed: ZeroDivisionError: 3 / 0 <script>" and form.state["bad"]
    assert form.payload["traces"][0]["y"] == [7]
    form.start(name="good")
    assert form.wait(5)
    assert form.result == [1] and not form.state["bad"]


def test_a_figure_that_fails_is_told_too():
    form = live(lambda inputs, progress: 3, lambda result: blank("T", "x", "y").add_scatter(y=[1 / (result - 3)]), recorded=4)
    form.start()
    assert form.wait(5)
    assert "ZeroDivisionError" in form.state["message"] and not form.state["running"]


def test_one_run_at_a_time():
    go_on = threading.Event()
    form = live(lambda inputs, progress: go_on.wait(5) and [1], figure, recorded=[7])
    form.start()
    with pytest.raises(RuntimeError, match="a run is going on"):
        form.start()
    send(form)
    assert "a run is going on" in form.state["message"]
    go_on.set()
    assert form.wait(5)


@pytest.mark.parametrize(("values", "message"), [
    ({"name": ""}, "Name is empty"), ({"name": "x" * 11}, "Name has 11 characters; at most 10"),
    ({"name": 3}, "Name: expected a text, got int"), ({"name": "no!"}, "no exclamation"),
    ({"image": b"<script>"}, "'image.png' cannot be used: it is no picture"), ({"image": b""}, "'image.png' is empty"),
    ({"image": b"x" * 300}, "has 300 bytes; at most 200"), ({"image": None}, "Image: choose a file first"),
    ({"mode": 7}, "Mode: 7 is not a place in a list of 2"),
])  # fmt: skip
def test_bad_input_is_named_before_the_run(values, message):
    def polite(value):
        if "!" in value:
            raise ValueError("no exclamation marks, please")

    tiny = io.BytesIO()
    Image.new("RGB", (2, 2)).save(tiny, "PNG")
    ran = []
    form = live(lambda inputs, progress: ran.append(inputs), figure, recorded=[7], mode=["a", "b"],
                name=text("Name", "x", max_chars=10, check=polite), image=picture("Image", max_bytes=200))  # fmt: skip
    send(form, **{"name": "fine", "image": tiny.getvalue(), "mode": 1, **values})
    assert message in form.state["message"] and form.state["bad"] and ran == []


def test_a_picture_comes_as_rgb_and_not_too_large():
    content = io.BytesIO()
    Image.new("LA", (3000, 1500), (10, 20)).save(content, "PNG")
    image = read_picture(content.getvalue(), max_side=512)
    assert image.mode == "RGB" and image.size == (512, 256)
    with pytest.raises(ValueError, match="a damaged one"):
        read_picture(content.getvalue()[:200])
    with pytest.raises(ValueError, match="3000 x 1500 pixels are more than 1,000"):
        read_picture(content.getvalue(), max_pixels=1000)


def test_a_file_is_read_by_its_reader():
    numbers = file("Numbers", [".csv"], read=lambda content: [float(v) for v in content.decode().split(",")])
    assert numbers.parse({"name": "a.CSV", "buffer": 0}, [b"1,2.5"]) == [1.0, 2.5]
    with pytest.raises(ValueError, match="'a.csv' cannot be used: could not convert string to float: 'x'"):
        numbers.parse({"name": "a.csv", "buffer": 0}, [b"1,x"])
    with pytest.raises(ValueError, match="'a.txt' is not one of .csv"):
        numbers.parse({"name": "a.txt", "buffer": 0}, [b"1"])


def test_without_a_recorded_result_it_says_what_to_press():
    form = live(lambda inputs, progress: [1], figure)
    assert form.payload["layouts"][0]["title"]["text"] == "Press Run"
    assert form._repr_mimebundle_()["text/plain"].startswith("LiveExplorer figure")
