"""The feature network and the scores made of it: the weights we published, gates, floors, gradients, bad input."""
import hashlib

import pytest
import torch

from frugal.core import image_metrics as metrics
from frugal.data.emoji_images import augment, load_images, pca_basis
from frugal.models import WEIGHTS_FOLDER, emoji_scores, load_card
from frugal.models.emoji_net import SHAPE, EmojiNet, load_emoji_net

# Every published eLPIPS, eFID and copy rate was taken with these weights: if they change, record all of them anew.
SHA256 = "ca16e6f3c44b1ea404b330522b8ce06f2ecb645a40c7bbf448fefe61ea152d16"


@pytest.fixture(scope="module")
def few():
    known = load_images()
    places = torch.cat([known.train()[::60], known.held_out_set()[::12]])
    return known.pixels[places], known.groups[places]


def test_the_weights_are_those_that_all_numbers_were_taken_with():
    assert hashlib.sha256((WEIGHTS_FOLDER / "emoji_net.safetensors").read_bytes()).hexdigest() == SHA256


def test_gates_of_the_card():
    card = load_card("emoji_net")
    assert card["shape"] == SHAPE and card["num_bytes"] < 0.7e6 and "missed" not in card
    assert all(card["metrics"][gate] >= least for gate, least in card["gates"].items()) and len(card["gates"]) == 4


def test_it_finds_groups_and_the_picture_itself(few):
    images, groups = few
    net = load_emoji_net()
    features = net.features(images)
    assert (net.logits(features)[0].argmax(-1) == groups).float().mean() > 0.8
    views = net.features(augment(images, torch.Generator().manual_seed(0)))
    assert (torch.cdist(views, features).argmin(1) == torch.arange(len(images))).float().mean() > 0.9


def test_features_are_standardized_and_do_not_depend_on_the_batch(few):
    images, _ = few
    net = load_emoji_net()
    features = net.features(images)
    assert features.mean(0).abs().max() < 0.8 and 0.7 < features.var(0).mean() < 1.3    # 0 and 1 over all 1,861
    torch.testing.assert_close(net.features(images[3:5]), features[3:5], atol=1e-4, rtol=1e-4)
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(net.features(doubled), features, atol=1e-4, rtol=1e-4)
    assert [tuple(stage.shape[1:]) for stage in net.stages(images[:1])] == [(24, 16, 16), (48, 8, 8), (72, 4, 4), (96, 2, 2)]


def test_elpips_grows_with_damage_and_teaches(few):
    images = few[0][:8]
    blurred = [emoji_scores.elpips(emoji_scores.block_means(images, side), images).mean().item() for side in (16, 8, 4, 2)]
    assert blurred == sorted(blurred) and emoji_scores.elpips(images, images).abs().max() < 1e-6
    start = (images + 0.2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1).requires_grad_()
    before = emoji_scores.elpips(start, images).mean()
    before.backward()
    with torch.no_grad():
        after = emoji_scores.elpips(start - start.grad * (0.02 / start.grad.abs().max()), images).mean()
    assert after < before
    with torch.autocast("cpu", torch.bfloat16):
        assert emoji_scores.elpips(start, images).dtype == torch.float32


def test_set_scores_are_the_metrics_of_the_features(few, monkeypatch):
    images, groups = few
    real = emoji_scores.features(load_images().pixels[::30])
    monkeypatch.setattr(emoji_scores, "real_features", lambda: real)
    monkeypatch.setattr(emoji_scores, "_copy_rate", lambda made: 0.25)
    made = emoji_scores.features(images)
    found = emoji_scores.set_scores(images, groups)
    assert found["efid"] == metrics.frechet_distance(real, made) and found["ekid"] == metrics.kernel_distance(real, made)
    assert found["efid_low"] < found["efid"] < found["efid_high"]
    assert (found["precision"], found["recall"]) == metrics.precision_recall(real, made)
    assert found["label_accuracy"] == emoji_scores.label_accuracy(images, groups) > 0.8
    assert emoji_scores.efid_floor(splits=3) > 0.5 * metrics.frechet_distance(real[::2], real[1::2]) * 0.5


def test_pair_scores_hold_the_mean_inside_their_interval(few):
    images = few[0]
    basis = pca_basis(16)
    decoded = basis.decode(basis.encode(images)).clamp(0, 1)
    found = emoji_scores.pair_scores(decoded, images)
    assert found["psnr"] == pytest.approx(metrics.psnr(decoded, images).mean().item(), abs=1e-4)
    assert found["psnr_low"] < found["psnr"] < found["psnr_high"] and found["elpips_low"] < found["elpips"] < found["elpips_high"]


def test_floor_pictures():
    known = load_images()
    images = known.pixels[known.train()[:3]]
    flat = emoji_scores.block_means(images, 1)
    assert torch.allclose(flat, images.mean((2, 3), keepdim=True).expand_as(images), atol=1e-5)
    assert torch.equal(emoji_scores.block_means(images, 32), images)
    near = emoji_scores.nearest_training(images)
    best = (known.pixels[known.train()].flatten(1)[None] - images.flatten(1)[:, None]).square().sum(-1)
    best[best < 1e-6] = float("inf")
    assert torch.equal(near, known.pixels[known.train()][best.argmin(1)])


@pytest.mark.parametrize("call, said", [
    (lambda: load_emoji_net().features(torch.zeros(1, 3, 48, 48)), "48 x 48"),
    (lambda: load_emoji_net().features(torch.zeros(1, 3, 32, 64)), "32 x 64"),
    (lambda: EmojiNet(**SHAPE).stages(torch.zeros(1, 3, 16, 16)), "16 x 16"),
    (lambda: emoji_scores.block_means(torch.zeros(1, 3, 32, 32), 5), "divide"),
    (lambda: emoji_scores.label_accuracy(torch.zeros(2, 3, 32, 32), torch.tensor([0, 9])), r"0\.\.8"),
])
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
