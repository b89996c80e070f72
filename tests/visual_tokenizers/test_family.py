"""The family as a whole: what every method says of itself, its exercises, ledger, recorded tables and figures, bad input."""
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frugal.core.claims import check_recorded
from frugal.core.image_metrics import psnr
from frugal.core.papers import Paper, papers
from frugal.core.recording import load_recorded, recorded_names
from frugal.core.sweep import Sweep
from frugal.data.emoji_images import load_images
from frugal.explore.exercises import problems
from frugal.models import list_weights, load_card
from frugal.visual_tokenizers import ALL, WORKLOADS, figures, figures_shared, live_picture, workloads
from frugal.visual_tokenizers.baselines import BASELINES, BlockMeans, Dictionary, PCATokens, TruncatedGrid
from frugal.visual_tokenizers.claims import CLAIMS
from frugal.visual_tokenizers.exercises import EXERCISES
from frugal.visual_tokenizers.methods import TOKENIZERS

BAD = (0, 0.0, -0.5, -3, 1.5, math.nan, math.inf, True)
PICTURE_METHODS = [method for method in ALL if method.kind == "tokenizer"]


@pytest.fixture(scope="module")
def few() -> torch.Tensor:
    known = load_images()
    return known.pixels[known.held_out_set()[::40]]


@pytest.fixture(scope="module")
def recorded():
    return load_recorded("visual_tokenizers", "reconstruct")


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_method_says_what_it_is(method):
    assert method.kind in {"tokenizer", "generator", "speech", "recommender"}
    assert isinstance(method.paper, Paper) and method.paper.title and method.label
    assert 10 <= len(method.summary) <= 100 and "\n" not in method.summary
    assert method.name == method.name.lower() and len(method.__doc__) > 60
    assert method.counts == tuple(sorted(method.counts)) and bool(method.counts) == (method.kind == "tokenizer")


def test_names_are_unique_and_the_eight_papers_are_there():
    names = [method.name for method in ALL]
    assert len(set(names)) == len(names)
    assert {p.key for p in papers("visual_tokenizers")} <= {method.paper.key for method in ALL}


def test_the_weights_are_there_and_small():
    assert {name for method in ALL for name in getattr(method, "weights", ())} <= set(list_weights())
    own = [load_card(name) for name in list_weights() if name.split("_")[0] in {
        "emoji", "vq", "rvq", "titok", "flextok", "hieratok", "robustok", "post", "resgen", "gense", "setrec"}]
    assert len(own) > 8 and sum(card["num_bytes"] for card in own) < 35e6


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_exercises_take_the_reference_and_name_each_mistake(exercise):
    assert problems(exercise) == []


def test_each_paper_has_exercises_figures_and_claims():
    keys = {p.key for p in papers("visual_tokenizers")}
    assert keys == {claim.paper.key for claim in CLAIMS}
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)
    assert len(EXERCISES) >= 8 and len({e.key for e in EXERCISES}) == len(EXERCISES)
    assert all(any(key.split("_")[0] in name for name in figures.FIGURES) for key in keys)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


# -- there and back -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", PICTURE_METHODS, ids=lambda m: m.name)
def test_a_picture_comes_back_from_its_codes_alone(method, few):
    made, count = method(), method.counts[-1]
    decoded = made.reconstruct(few, count)
    assert decoded.images.shape == few.shape and 0 <= decoded.images.min() <= decoded.images.max() <= 1
    codes = made.encode(few, count)
    torch.testing.assert_close(made.decode(codes, count).clamp(0, 1), decoded.images, atol=1e-5, rtol=1e-5)
    if method.name != "hieratok":                                                       # real numbers in place of codes
        assert not codes.is_floating_point()
        alike = torch.cat([codes[:1], codes[:1]])
        assert codes[0].numel() * (24 if method is BlockMeans else 1) >= decoded.bits / 24 and decoded.bits > 0
        if method.name != "flextok":                                                    # each picture has its own noise
            pair = made.decode(alike, count)
            torch.testing.assert_close(pair[0], pair[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", PICTURE_METHODS, ids=lambda m: m.name)
def test_counts_it_was_not_made_for_are_one_clear_error(method, few):
    made = method()
    for count in {0, 3, 65, method.counts[-1] + 1} - set(method.counts):
        with pytest.raises(ValueError, match=rf"{method.name} was made for .*not {count}"):
            made.reconstruct(few, count)
    assert made.at_most(0) is None and made.at_most(10_000) == method.counts[-1]


@pytest.mark.parametrize("images, said", [
    (torch.zeros(1, 3, 64, 64), "shape"), (torch.zeros(1, 1, 32, 32), "shape|Type-check"), (torch.full((1, 3, 32, 32), 2.0), "0, 1"),
    (torch.full((1, 3, 32, 32), math.nan), "0, 1"), (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "float|Type-check"),
])
@pytest.mark.parametrize("method", [PCATokens, TOKENIZERS[0]], ids=lambda m: m.name)
def test_other_pictures_are_refused(method, images, said):
    with pytest.raises((ValueError, TypeError), match=said):
        method().reconstruct(images, method.counts[-1])


@pytest.mark.parametrize("method, codes", [
    (PCATokens, torch.full((1, 4), 256)), (PCATokens, torch.zeros(1, 5, dtype=torch.long)), (PCATokens, torch.full((1, 4), -1)),
    (BlockMeans, torch.full((1, 4, 3), 256)), (Dictionary, torch.full((1, 4), 5000)), (Dictionary, torch.full((1, 1), 5000)),
    (TruncatedGrid, torch.full((1, 4), 256)), (PCATokens, torch.zeros(1, 4))])
def test_codes_that_are_none_are_refused(method, codes):
    with pytest.raises(ValueError, match="codes must"):
        method().decode(codes, 4 if method is not Dictionary else 1)


def test_pca_tokens_against_plain_pca(few):
    known = load_images()
    flat = known.pixels[known.train()].flatten(1).double()
    mean = flat.mean(0)
    parts = torch.svd_lowrank((flat - mean).float(), q=40, niter=6)[2].T[:16].double()
    centred = few.flatten(1).double() - mean
    best = (centred @ parts.T @ parts + mean).view_as(few).clamp(0, 1)
    found = PCATokens().reconstruct(few, 16).images
    assert (psnr(found, few) - psnr(best.float(), few)).abs().max() < 0.4               # 256 steps cost little
    steps = [psnr(PCATokens().reconstruct(few, count).images, few).mean().item() for count in PCATokens.counts]
    assert steps == sorted(steps)


def test_dictionary_and_block_means_are_what_they_say(few):
    known = load_images()
    train = known.pixels[known.train()]
    found = Dictionary().reconstruct(few, 1).images
    least = (train[None] - few[:, None]).square().flatten(2).sum(-1).argmin(1)
    assert torch.equal(found, train[least])
    assert torch.equal(Dictionary().reconstruct(train[:3], 1).images, train[:3])
    flat = BlockMeans().reconstruct(few, 1).images
    assert (flat - few.mean((2, 3), keepdim=True)).abs().max() < 0.51 / 255 + 1e-6


def test_a_cut_grid_is_right_where_its_tokens_are(few):
    whole, half = (TruncatedGrid().reconstruct(few, count).images for count in (64, 32))
    grid = TOKENIZERS[0]().reconstruct(few, 64).images
    assert torch.equal(whole, grid)
    top, low = ((half - few).square()[:, :, rows].mean() for rows in (slice(0, 12), slice(20, 32)))
    assert top < low / 3


# -- the workload -------------------------------------------------------------------------------------------------

def test_a_row_says_what_was_measured(few):
    work = workloads.Reconstruct(every=20)
    row = work.run(PCATokens, 16, 0)
    known = load_images()
    originals = known.pixels[known.held_out_set()[::20]]
    decoded = PCATokens().reconstruct(originals, 16).images
    assert row["psnr"] == pytest.approx(psnr(decoded, originals).mean().item(), abs=1e-3)
    assert row["psnr_low"] < row["psnr"] < row["psnr_high"] and row["bits"] == 128 and row["spent_tokens"] == 16
    assert row["encode_cpu_s"] >= 0 and "r_efid" not in row and len(work.model_hash()) == 12
    assert work.run(PCATokens, 0.25, 0)["spent_tokens"] == 16                            # a quarter of 64
    assert set(WORKLOADS) == {"reconstruct", "reconstruct_all"}


@pytest.mark.parametrize("budget", BAD, ids=str)
def test_a_bad_budget_is_one_clear_error_before_anything_runs(budget):
    with pytest.raises(ValueError, match="budget .*fraction in"):
        Sweep("visual_tokenizers", ["pca"], [budget], "reconstruct")


@pytest.mark.parametrize("budget", [*BAD, 5_000], ids=str)
def test_a_workload_called_by_hand_refuses_it_too(budget):
    with pytest.raises(ValueError, match=r"budget .*\(0, 1\]"):
        workloads.Reconstruct().run(PCATokens, budget, 0)


@pytest.mark.parametrize("method", [method for method in ALL if method.kind != "tokenizer"], ids=lambda m: m.name)
def test_what_tokenizes_no_pictures_says_so(method):
    with pytest.raises(ValueError, match="reconstructs no pictures"):
        workloads.Reconstruct().run(method, 16, 0)


# -- what was recorded --------------------------------------------------------------------------------------------

def test_every_recorded_table_loads():
    names = recorded_names("visual_tokenizers")
    assert {"floors", "sets", "reconstruct", "codebooks", "board", "live_picture"} <= set(names)
    for name in names:
        assert len(load_recorded("visual_tokenizers", name)) > 0


def test_all_tokenizers_are_recorded_at_all_counts(recorded):
    assert (recorded.error == "").all()
    assert {(row.method, row.spent_tokens) for row in recorded.itertuples()} == {
        (method.name, count) for method in PICTURE_METHODS for count in method.counts}


def test_the_gates(recorded):
    """Each learned tokenizer beats PCA with as many components, or its card says that it missed the gate."""
    floors = load_recorded("visual_tokenizers", "floors").query("floor == 'PCA'").set_index("numbers").psnr_held_out
    own = {method.name: method for method in TOKENIZERS}
    mean = load_recorded("visual_tokenizers", "flextok_kept").query("what == 'one step'").set_index("k").psnr
    assert all(mean[k] > floors[k] for k in own["flextok"].counts)            # a drawn picture need not be near, its mean must
    del own["flextok"]
    for row in recorded[recorded.method.isin(list(own)) & (recorded.spent_tokens <= 64) & recorded.spent_tokens.isin(floors.index)].itertuples():
        if row.psnr <= floors[row.spent_tokens]:
            weights = own[row.method].weights
            name = next((name for name in weights if name.endswith(f"_{row.spent_tokens}")), weights[0])
            assert "missed" in load_card(name), (row.method, row.spent_tokens, row.psnr, floors[row.spent_tokens])


@pytest.mark.parametrize("method, count", [(PCATokens, 16), (TOKENIZERS[0], 64), (TOKENIZERS[1], 32)], ids=lambda x: getattr(x, "name", None))
def test_recorded_cells_come_out_again(recorded, method, count):
    cell = recorded[(recorded.method == method.name) & (recorded.spent_tokens == count)].iloc[0]
    found = workloads.Reconstruct().run(method, count, 0)
    assert found["psnr"] == pytest.approx(cell.psnr, abs=0.02) and found["elpips"] == pytest.approx(cell.elpips, rel=0.02)
    assert found["bits"] == pytest.approx(cell.bits, rel=1e-5)


def test_more_levels_and_more_components_never_hurt(recorded):
    for name in ("pca", "rvq_grid", "block_means"):
        part = recorded[recorded.method == name].sort_values("spent_tokens")
        assert (part.psnr.diff().dropna() > -0.02).all() and (part.bits.diff().dropna() > 0).all()


def test_floors_are_those_of_the_pictures():
    rows = load_recorded("visual_tokenizers", "floors")
    known = load_images()
    train, held_out = known.pixels[known.train()], known.pixels[known.held_out_set()]
    mean = rows[rows.floor == "mean picture"].iloc[0]
    assert mean.psnr_held_out == pytest.approx(psnr(train.mean(0).expand_as(held_out), held_out).mean().item(), abs=1e-3)
    sets = load_recorded("visual_tokenizers", "sets").set_index("set")
    assert sets.loc["all emoji themselves", "efid"] < 1e-8 and sets.loc["training half, twice", "copy_rate"] == 1
    assert sets.loc["moved and flipped", "efid"] < sets.efid_floor.iloc[0] < sets.loc["8 x 8 block means", "efid"]


# -- figures and the live page ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    explorer = figures.FIGURES[name]()
    drawn = [point for point in explorer.payload["points"] if "e" not in point]
    assert len(explorer.payload["points"]) == math.prod(len(c["values"]) for c in explorer.payload["controls"])
    assert drawn and all(len(point["s"]) > 20 for point in drawn)
    assert len(str(explorer.payload)) < 600_000


def test_the_board_shows_the_recorded_numbers(recorded):
    fig = figures.rate_distortion().figure(score="psnr", against="bits", picked="vq_grid")
    trace, = [t for t in fig.data if t.name == "VQ grid"]
    part = recorded[recorded.method == "vq_grid"].sort_values("bits")
    assert list(trace.y) == part.psnr.tolist() and list(trace.x) == part.bits.tolist()
    best = figures_shared.best_within(recorded, "psnr", 512)
    assert best.bits <= 512 and best.psnr == recorded[recorded.bits <= 512].psnr.max()
    assert figures_shared.best_within(recorded, "elpips", 512).elpips == recorded[recorded.bits <= 512].elpips.min()


def test_one_picture_holds_every_tokenizer_within_the_budget():
    original = load_images().pixels[live_picture.place_of("fox")]
    rows = live_picture.rows_of(original, 16)
    assert rows[0]["label"] == "Original" and rows[0]["tokens"] == 0 and rows[0]["psnr"] == live_picture.MAX_PSNR
    fits = {m.label: m().at_most(16) for m in (*TOKENIZERS, *BASELINES) if m().at_most(16) and m is not TruncatedGrid}
    assert {row["label"]: row["tokens"] for row in rows[1:]} == fits
    fig = live_picture.board(rows)
    assert len(fig.layout.images) == len(rows) and "16 tokens" in fig.layout.title.text


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("image", [
    Image.new("RGBA", (50, 40), (255, 0, 0, 128)), Image.linear_gradient("L"), Image.new("P", (9, 90), 3), Image.new("1", (64, 64), 1),
    Image.new("RGB", (4, 4), "blue"), Image.new("RGB", (3000, 1500), "green")], ids=lambda i: f"{i.mode} {i.size}")
def test_the_readers_own_picture_of_any_kind(image):
    form = live_picture.inputs()
    own = form["picture"].parse({"name": "mine.PNG", "buffer": 0}, [file_of(image)])
    rows = live_picture.reconstruct({"name": "fox", "picture": own, "budget": 4}, lambda share: None)
    assert own.shape == (3, 32, 32) and len(rows) > 2


@pytest.mark.parametrize("name, content, said", [
    ("mine.txt", b"x", "not one of .png"), ("mine.png", b"no picture", "no picture"), ("mine.png", b"", "empty"),
    ("mine.png", file_of(Image.new("RGB", (3, 500))), "at least 4 px"), ("mine.gif", b"GIF89a", "no picture"),
    ("mine.png", file_of(Image.effect_noise((64, 64), 50))[:900], "damaged")])
def test_a_file_that_is_no_picture_is_one_clear_error(name, content, said):
    with pytest.raises(ValueError, match=said):
        live_picture.inputs()["picture"].parse({"name": name, "buffer": 0}, [content])


@settings(max_examples=25, deadline=None)
@given(name=st.text(max_size=12))
def test_any_text_is_an_emoji_or_a_clear_error(name):
    try:
        assert load_images().names[live_picture.place_of(name)].lower() == name.strip().lower()
    except ValueError as error:
        assert "no emoji is called" in str(error)


def test_near_names_are_offered():
    for name, near in (("foxx", "fox"), ("apple", "red apple")):
        with pytest.raises(ValueError, match=near):
            live_picture.place_of(name)
    assert np.isfinite([row["psnr"] for row in live_picture.recorded_board()]).all()
