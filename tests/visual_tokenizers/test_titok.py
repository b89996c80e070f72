"""TiTok: the K codes are all that the decoder knows; stage 2 with one-hot logits is the grid; planted mistakes are seen."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.core.claims import check_recorded
from frugal.core.image_metrics import psnr
from frugal.core.recording import load_recorded
from frugal.data.emoji_images import PixelBasis, load_images
from frugal.explore.exercises import problems
from frugal.models.quantizers import FSQ, VectorQuantizer
from frugal.models.token_generators import build_generator
from frugal.models.vq_grid import VQGrid, load_vq_grid
from frugal.visual_tokenizers.claims_titok import CLAIMS
from frugal.visual_tokenizers.exercises_titok import EXERCISES
from frugal.visual_tokenizers.figures_titok import FIGURES
from frugal.visual_tokenizers.titok import (
    NUM_PATCHES, TiTok, join_latents, latent_outputs, load_titok, start_from_pca,
)
from frugal.visual_tokenizers.titok_cost import DIT, MASKED, chain, lengths
from frugal.visual_tokenizers.titok_measure import (
    latent_attention, patch_effect, prefixes, sample, spread, step_codes, usual_codes,
)
from frugal.visual_tokenizers.titok_measure import pictures as measured_pictures
from frugal.visual_tokenizers.titok_stages import TwoStageTiTok, soft_codes

SMALL = dict(width=16, num_blocks=1, num_heads=2)


def basis(rank: int = 24) -> PixelBasis:
    draw = torch.Generator().manual_seed(5)
    rows = torch.linalg.qr(torch.randn(3072, rank, generator=draw)).Q.T.contiguous()
    return PixelBasis(torch.full((3072,), 0.5), rows, torch.linspace(3, 0.1, rank))


def titok(tokens: int = 4, shortcut: bool = True, kind: type = TiTok, **options) -> TiTok:
    torch.manual_seed(0)
    return kind(tokens, **{**SMALL, **options}, **({"basis": basis()} if shortcut else {})).eval()


def small_grid() -> VQGrid:
    torch.manual_seed(1)
    return VQGrid(8, VectorQuantizer(16, 4), fine=8, width=8, blocks=(1, 1)).eval()


def two_stages(tokens: int = 4) -> TwoStageTiTok:
    torch.manual_seed(0)
    return TwoStageTiTok(small_grid(), num_tokens=tokens, quantizer=VectorQuantizer(16, 4), **SMALL).eval()


def pictures(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [titok, lambda: titok(shortcut=False), lambda: titok(7), two_stages],
                         ids=["shortcut", "pure", "seven", "two stages"])
def test_codes_hold_all_the_decoder_knows(make):
    model = make()
    codes = model.encode(pictures())
    assert codes.shape == (3, model.num_tokens)
    assert torch.allclose(model.decode(codes), model(pictures()).images.clamp(0, 1), atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(1, 6), seed=st.integers(0, 99))
def test_pictures_of_equal_codes_decode_alike(tokens, seed):
    model = titok(tokens)
    one = pictures(1, seed)
    near = (one + 1e-4 * torch.rand(one.shape)).clamp(0, 1)
    a, b = model.encode(one), model.encode(near)
    assert torch.equal(model.decode(a), model.decode(b)) == torch.equal(a, b)


def test_join_and_slice_are_the_picture_of_figure_3():
    patches, latents = torch.randn(2, 5, 3), torch.randn(4, 3)
    joined = join_latents(patches, latents)
    assert joined.shape == (2, 9, 3) and torch.equal(joined[:, :5], patches)
    assert torch.equal(latent_outputs(joined, 4), latents.expand(2, -1, -1))


def test_bits_and_the_wrong_number_of_numbers():
    assert titok(16, shortcut=False).bits == pytest.approx(16 * 7.9069, abs=1e-3)
    with pytest.raises(ValueError, match="27 numbers"):
        TiTok(9, **SMALL, basis=basis(24))
    with pytest.raises(ValueError, match="at least 1"):
        TiTok(0)


@pytest.mark.parametrize("bad, said", [(torch.zeros(1, 5, dtype=torch.long), r"\(B, 4\)"), (torch.full((1, 4), 240), "0..239"),
                                       (torch.full((2, 4), -1), "0..239")])
def test_codes_that_are_none(bad, said):
    with pytest.raises(ValueError, match=said):
        titok().decode(bad)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="shape"):
        titok().encode(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        titok().encode(torch.rand(1, 3, 32, 32) + 1)


def test_start_from_pca_is_least_squares_on_the_quantized_numbers():
    """With the branches at 0 the decoder is linear in the codes: its residual must be orthogonal to them."""
    torch.manual_seed(0)
    model = TiTok(3, **SMALL, basis=basis(24)).eval()
    real = load_images().pixels[::7]
    start_from_pca(model, real, share=0.0)
    with torch.no_grad():
        quantized = model.quantizer(model.latents(real)).latents.flatten(1)
        left = model.shortcut.coordinates(real) - model.shortcut.leave(quantized)
    lean = torch.cat([quantized, torch.ones(len(real), 1)], 1).T @ left
    # the ridge of 1 leaves a slope of exactly the weights
    weights = torch.cat([model.shortcut.leave.weight.T, model.shortcut.leave.bias[None]])
    assert torch.allclose(lean, weights, atol=2e-2)


# -- the two stages -------------------------------------------------------------------------------------------------

def test_one_hot_logits_are_the_grids_own_decoder():
    model, codes = two_stages(), torch.randint(16, (2, NUM_PATCHES))
    logits = torch.nn.functional.one_hot(codes, 16) * 1e4
    soft = soft_codes(logits.float(), model.grid.quantizer.codebook)
    assert torch.equal(soft, model.grid.quantizer.lookup(codes))
    assert torch.equal(model.grid.decode_latents(soft).clamp(0, 1), model.grid.decode(codes))


def test_k_of_64_with_identities_is_the_grid():
    """64 tokens, an encoder that hands the grid's latents on and a decoder that names the codes: the grid itself."""
    model = two_stages(64)
    model.latents = model.grid.latents
    model.quantizer = model.grid.quantizer
    model.fill = lambda latents: 1e4 * (latents @ model.grid.quantizer.codebook.T - 1)   # largest where the code is its own
    assert torch.equal(model.encode(pictures()), model.grid.encode(pictures()))
    assert torch.allclose(model.decode(model.encode(pictures())), model.grid.decode(model.grid.encode(pictures())), atol=1e-5)


def test_stage_1_teaches_no_pixel_and_stage_2_no_code():
    model = two_stages()
    model.grid.requires_grad_(False)
    loss, _ = model.proxy_loss(pictures())
    loss.backward()
    assert model.embed.weight.grad.abs().sum() > 0 and all(p.grad is None for p in model.grid.parameters())
    model.zero_grad()
    model.grid.requires_grad_(True)
    model.freeze_encoder()
    model.train()
    before = model.eval().encode(pictures())
    model.train()
    model.decoded(pictures()).square().mean().backward()
    assert model.grid.decoder[-2].weight.grad.abs().sum() > 0 and model.head[0].weight.grad.abs().sum() > 0
    for part in (model.embed, model.encoder, model.to_latents, model.grid.encoder):
        assert all(p.grad is None for p in part.parameters())
    assert model.patch_places.grad is None and model.latent_tokens.grad is None
    assert torch.equal(model.eval().encode(pictures()), before)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="each of the 64 patches"):
        TwoStageTiTok(VQGrid(4, VectorQuantizer(16, 4), fine=8, width=8, blocks=(1, 1)), **SMALL)
    with pytest.raises(ValueError, match="of FSQ"):
        TwoStageTiTok(VQGrid(8, FSQ((4, 4)), fine=8, width=8, blocks=(1, 1)), **SMALL)


# -- planted mistakes -----------------------------------------------------------------------------------------------

def leaks(model: TiTok) -> bool:
    """Whether the decoder moves with the picture while the codes stay: the oracle that each mistake below fails."""
    real, other = pictures(1), pictures(1, 9)
    quantized = model.quantizer(model.latents(real)).latents
    with torch.no_grad():
        model.latents(other)                                # whatever a model keeps of a picture is now another one's
        seen = model.decode_latents(quantized)
        model.latents(real)
        again = model.decode_latents(quantized)
    return not torch.equal(seen, again)


class ReadsPatches(TiTok):
    """Keeps the encoder's patch outputs and decodes from them."""

    def latents(self, images):
        self.kept = self.patches(images)
        return super().latents(images)

    def fill(self, latents):
        return super().fill(latents) + self.head(self.kept)


class Scrambles(TiTok):
    """(N, K, w) to (N, w, K) by reshape, without a permutation (the released legacy checkpoints)."""

    def latents(self, images):
        made = super().latents(images)
        return made.reshape(len(made), made.shape[2], made.shape[1]).transpose(1, 2)


def test_reading_patch_outputs_is_seen_as_a_leak():
    assert not leaks(titok()) and leaks(titok(kind=ReadsPatches))


def test_the_scramble_is_seen():
    """Rightly, latent token k alone moves token k's latent (with the shortcut off and one token's output changed)."""
    for kind, right in ((TiTok, True), (Scrambles, False)):
        model = titok(4, shortcut=False, kind=kind)
        states = []
        model.encoder.register_forward_hook(lambda module, given, out: states.append(out) or out)
        before = model.latents(pictures(1))
        changed = states[0].clone()
        changed[:, NUM_PATCHES + 2] += 1
        model.encoder.register_forward_hook(lambda module, given, out: changed)
        moved = (model.latents(pictures(1)) - before).abs().sum(-1)[0] > 1e-6
        assert (moved.nonzero().flatten().tolist() == [2]) == right


# -- the trained ones -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("tokens, least", [(4, 14.6), (8, 15.5), (16, 17.5), (32, 18.3)])
def test_trained_titoks_reach_their_level(tokens, least):
    model, images = load_titok(tokens), load_images()
    real = images.pixels[images.held_out_set()]
    assert psnr(model.decode(model.encode(real)), real).mean() > least


@pytest.mark.parametrize("tokens", [4, 16])
def test_a_row_keeps_no_less_than_as_many_squares(tokens):
    """At 32 px both see the whole picture, so the row is level with the grid; the 1 dB hoped for is not there."""
    images = load_images()
    real = images.pixels[images.held_out_set()]
    row, square = load_titok(tokens), load_vq_grid(f"vq_grid_{tokens}")
    gain = psnr(row.decode(row.encode(real)), real).mean() - psnr(square.decode(square.encode(real)), real).mean()
    assert -0.1 < gain < 1


# -- what is measured -----------------------------------------------------------------------------------------------

def test_attention_rows_are_those_of_the_encoder():
    """The maps are a softmax's share, and a token that looks at patches alone spreads over as many as it weighs alike."""
    model = titok(5, shortcut=False)
    maps = latent_attention(model, pictures(2))
    assert maps.shape == (2, 1, 5, NUM_PATCHES) and (maps.sum(-1) < 1 + 1e-5).all()
    assert torch.allclose(spread(torch.tensor([[1.0] * 4 + [0.0] * 60, [2.0] + [0.0] * 63])), torch.tensor([4.0, 1.0]))
    for p in model.encoder.blocks[0].qkv.parameters():
        torch.nn.init.zeros_(p)
    assert torch.allclose(latent_attention(model, pictures(1)), torch.full((1, 1, 5, NUM_PATCHES), 1 / (NUM_PATCHES + 5)))


def test_a_white_patch_moves_nothing_and_another_does():
    model = titok(4)
    image = torch.ones(3, 32, 32)
    image[:, 4:8, 8:12] = 0.0                                      # row 1, column 2 of 8 x 8 patches
    effect = patch_effect(model, image)
    assert effect[:, 10] == pytest.approx(torch.ones(4), abs=1e-3) and effect.sum() == pytest.approx(4.0)


def test_prefixes_fill_what_is_not_drawn_yet():
    model, codes, fill = titok(4), torch.tensor([1, 2, 3, 4]), torch.tensor([9, 9, 9, 9])
    made = prefixes(model, codes, fill, (0, 2, 4))
    assert torch.allclose(made, model.decode(torch.tensor([[9, 9, 9, 9], [1, 2, 9, 9], [1, 2, 3, 4]])), atol=1e-6)
    assert usual_codes(torch.tensor([[1, 5], [1, 6], [2, 6]])).tolist() == [1, 6]


@pytest.mark.parametrize("kind", ["ar", "maskgit"])
def test_generators_hand_the_tokenizer_good_codes(kind):
    model = titok(4)
    torch.manual_seed(0)
    made = build_generator({"kind": kind, "vocab_size": 240, "length": 4, "width": 16, "num_blocks": 1, "num_heads": 2}).eval()
    groups = torch.tensor([0, 3, 8])
    assert measured_pictures(model, made, groups).shape == (3, 3, 32, 32)
    assert torch.equal(measured_pictures(model, made, groups, seed=1), measured_pictures(model, made, groups, seed=1))
    if kind == "maskgit":
        seen = step_codes(made, groups, 1, torch.zeros(4, dtype=torch.long))
        assert len(seen) == 4 and torch.equal(seen[-1], sample(made, groups, 1)) and (seen < 240).all()


# -- at the paper's size --------------------------------------------------------------------------------------------

def test_projected_work_is_the_published_one():
    """DiT-XL/2 at 512 px is published with 524.6 G multiply-adds a pass (arXiv 2212.09748, table 6)."""
    assert DIT.cost().flops / 2 == pytest.approx(524.6e9, rel=0.002)
    assert MASKED.weights == pytest.approx(177e6, rel=0.05)


def test_the_chain_multiplies_to_the_whole():
    rows = chain()
    for column, factor in (("tflops", "flops_factor"), ("ms_1", "s_1_factor"), ("ms_64", "s_64_factor")):
        assert rows[factor].prod() == pytest.approx(rows[column].iloc[0] / rows[column].iloc[-1])
    assert rows.flops_factor.iloc[1] == pytest.approx(250 / 8)
    by_hand = 2 * 170e6 * 64 * 16                                   # products of the short row, without attention
    assert rows.tflops.iloc[3] * 1e12 == pytest.approx(by_hand, rel=0.03)


def test_short_rows_pay_only_where_products_rule():
    at = lengths().set_index(["tokens", "batch"])["speedup"]
    assert at[32, 64] > 7 and at[32, 1] < 2 and at[256, 64] == 1


# -- the recorded rows ----------------------------------------------------------------------------------------------

def test_recorded_time_follows_the_number_of_tokens():
    rows = load_recorded("visual_tokenizers", "titok_speed")
    own = rows[(rows.batch == 1) & (rows.kind == "ar")].set_index("of")
    assert own.loc["64"].cpu_ms > own.loc["16"].cpu_ms > own.loc["4"].cpu_ms
    assert own.loc["64"].gflops / own.loc["8"].gflops == pytest.approx(8, rel=0.05)
    assert set(rows[rows.kind == "decode"].of) == {"vq_grid_64", *(f"titok_{k}" for k in (4, 8, 16, 32))}


def test_every_recorded_set_has_its_copy_rate():
    rows = load_recorded("visual_tokenizers", "titok_generated")
    assert rows.copy_rate.between(0, 1).all() and (rows.efid_low <= rows.efid).all() and (rows.floor < rows.efid).all()
    assert {("titok_16", "ar"), ("vq_grid_64", "ar"), ("titok_16", "maskgit"), ("vq_grid_64", "maskgit")} <= set(zip(rows.tokenizer, rows.kind))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict


def test_the_exercise_takes_the_reference_and_names_each_mistake():
    assert [problems(exercise) for exercise in EXERCISES] == [[]]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_draw_every_choice(name):
    assert len(json.dumps(FIGURES[name]().payload)) < 250_000
