"""Mini-CLIP: the maps that token droppers read against a plain computation, bad input, and the gates of the trained
weights."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data.scenes import HELD_OUT, NAMES, covered, images_of, make_scene, patch_labels, to_views
from frugal.models import load_card
from frugal.models.mini_clip import MiniCLIP, load_mini_clip


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    clip = MiniCLIP(width=32, num_blocks=3, num_heads=2, mlp=48, text_width=16)
    for block in clip.blocks:
        block.qkv.weight.data *= 4
    return clip.eval()


def views_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_shapes(small):
    seen = small.encode(views_of(5))
    assert (
        seen.patches.shape == seen.keys.shape == (5, 64, 32)
        and seen.cls.shape == (5, 16)
        and seen.cls_query.shape == (5, 32)
    )
    assert seen.cls_attn.shape == (3, 5, 2, 64) and seen.patch_attn.shape == (5, 2, 64, 64)
    assert small.name_logits(seen.cls).shape == (5, len(NAMES)) and small.patch_logits(seen.patches).shape == (
        5,
        64,
        len(NAMES) + 1,
    )


def test_encode_says_what_the_training_forward_says(small):
    views = views_of(4)
    seen, (patches, cls) = small.encode(views), small(views)
    torch.testing.assert_close(seen.patches, patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.cls, cls, atol=1e-5, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), head=st.integers(0, 1))
def test_attention_maps_against_a_loop(small, seed, head):
    view = views_of(1, seed)
    seen, x = small.encode(view), small.tokens(view)
    for number, block in enumerate(small.blocks):
        q, k, v = (
            F.linear(block.attn_norm(x), w, b) for w, b in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3))
        )
        part = slice(16 * head, 16 * head + 16)                                          # 32 wide, two heads
        rows = torch.stack([torch.stack([q[0, i, part] @ k[0, j, part] for j in range(65)]) for i in (0, 7)]) / 4
        rows = rows.softmax(-1)
        torch.testing.assert_close(seen.cls_attn[number, 0, head], rows[0, 1:], atol=1e-5, rtol=1e-4)
        if number == 0:
            torch.testing.assert_close(seen.patch_attn[0, head, 6], rows[1, 1:], atol=1e-5, rtol=1e-4)
        last_k, last_q = k, q
        x = block(x)
    torch.testing.assert_close(seen.keys, last_k[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.cls_query, last_q[:, 0], atol=1e-5, rtol=1e-4)
    assert (seen.cls_attn.sum(-1) <= 1 + 1e-5).all()         # the CLS column is left out; in fp32 it may be too small to tell


def test_views_do_not_see_each_other(small):
    views = views_of(3)
    torch.testing.assert_close(small.encode(views).patches[1:2], small.encode(views[1:2]).patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("views", [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 64, 64), torch.zeros(3, 64, 64),
                                   torch.zeros(2, 3, 64, 64, dtype=torch.uint8)])
def test_other_views_are_refused(small, views):
    with pytest.raises(ValueError, match="views must be floats"):
        small.tokens(views)


def test_the_stem_decides_the_number_of_patches():
    with pytest.raises(ValueError, match="patches must be 8"):
        MiniCLIP(patches=6)


@pytest.fixture(scope="module")
def held_out():
    scenes = [make_scene(HELD_OUT + i) for i in range(100)]
    clip = load_mini_clip()
    return clip, scenes, clip.encode(to_views(images_of(scenes)).flatten(0, 1))


def test_gate_patches_name_their_objects(held_out):
    clip, scenes, seen = held_out
    labels = torch.from_numpy(patch_labels(scenes)).flatten(2)                           # (B, 5, 64)
    right = clip.patch_logits(seen.patches).argmax(-1).unflatten(0, (-1, 5)) == labels
    assert right[:, 1:][labels[:, 1:] > 0].float().mean() > 0.85
    assert right[labels == 0].float().mean() > 0.9


def test_gate_cls_looks_at_objects(held_out):
    _, scenes, seen = held_out
    shown = torch.from_numpy(covered(scenes)[1] > 0.3).flatten(0, 1).flatten(1)
    attn = seen.cls_attn[-1].sum(1)
    attn = attn / attn.sum(-1, keepdim=True)
    some = shown.any(-1)
    assert (attn * shown).sum(-1)[some].mean() > 2 * shown[some].float().mean()
    turned = attn.roll(13, dims=-1)  # a map of the wrong places would not pass
    assert (turned * shown).sum(-1)[some].mean() < 2 * shown[some].float().mean()


def test_gate_cls_names_what_a_view_holds(held_out):
    clip, scenes, seen = held_out
    overview = clip.name_logits(seen.cls).unflatten(0, (-1, 5))[:, 0]
    recall = []
    for scores, scene in zip(overview, scenes):
        wanted = {NAMES.index(name) for name in scene.names}
        recall.append(len(wanted & set(scores.topk(len(wanted)).indices.tolist())) / len(wanted))
    assert sum(recall) / len(recall) > 0.85


def test_the_card_says_so_too():
    card = load_card("mini_clip")
    assert all(card["metrics"][gate] >= least for gate, least in card["gates"].items())
