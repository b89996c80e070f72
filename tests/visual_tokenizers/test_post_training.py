"""Post-training: the two limits of the preserved sampler, the share kept, what may move, and mistakes made on purpose."""
import pytest
import torch
from scipy.stats import binomtest

from frugal.models.mini_ar import MiniAR
from frugal.models.quantizers import VectorQuantizer
from frugal.models.vq_grid import VQGrid
from frugal.visual_tokenizers import post_training as post
from frugal.visual_tokenizers.post_training import Sampling, preservation_sample, preserved

SIZE, LENGTH = 32, 16
PLAIN = Sampling(guidance=1.0)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> MiniAR:
    torch.manual_seed(0)
    model = MiniAR(SIZE, LENGTH, width=16, num_blocks=2, num_heads=2)
    model.codes.weight.data.mul_(60)                             # so that the next code depends on those before it
    model.head.weight.data.mul_(12)
    return model.requires_grad_(False).eval()


@pytest.fixture()
def tokenizer() -> VQGrid:
    torch.manual_seed(0)
    return VQGrid(4, VectorQuantizer(SIZE, 4), fine=8, width=8, blocks=(1, 1), linear_shortcut=True).eval()


def real(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(SIZE, (count, LENGTH), generator=draw(5)), torch.arange(count) % 9


# -- the sampler; each statement takes an implementation -------------------------------------------------------------

def check_all_kept(sample, model) -> None:
    codes, classes = real()
    assert torch.equal(sample(model, codes, classes, 1.0, draw(1), draw(2), PLAIN), codes)


def check_none_kept(sample, model) -> None:
    """sigma = 0 is the plain sampler, draw for draw, whatever the real codes are."""
    codes, classes = real()
    want = model.generate(classes, draw(1))
    assert torch.equal(sample(model, codes, classes, 0.0, draw(1), draw(2), PLAIN), want)


def check_mixed_prefix(sample, model) -> None:
    """Greedy: every code that was not kept is the likeliest after the mixture before it."""
    codes, classes = real()
    greedy = Sampling(temperature=0.0, guidance=1.0)
    mixed = sample(model, codes, classes, 0.5, draw(1), draw(2), greedy)
    keep = preserved(codes.shape, 0.5, draw(2))
    best = model(mixed, classes).argmax(-1)[:, :LENGTH]
    assert torch.equal(mixed, torch.where(keep, codes, best))


def check_each_on_its_own(sample, model) -> None:
    """The share kept is sigma, in every picture about as much, not whole pictures."""
    codes, classes = torch.full((200, LENGTH), SIZE - 1), torch.zeros(200, dtype=torch.long)
    free = sample(model, codes, classes, 0.0, draw(1), draw(2), PLAIN)
    chance = float((free == codes).double().mean())
    same = sample(model, codes, classes, 0.7, draw(1), draw(2), PLAIN) == codes
    assert abs(float(same.double().mean()) - (0.7 + 0.3 * chance)) < 0.06
    assert not same.all(1).double().mean() > 0.3


CHECKS = (check_all_kept, check_none_kept, check_mixed_prefix, check_each_on_its_own)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_preserved_sampler(check, model):
    check(preservation_sample, model)


def _clean_prefix(model, codes, classes, sigma, generator, masks, sampling):
    """Predicts after the real codes (teacher forcing)."""
    keep = preserved(codes.shape, sigma, masks)
    return torch.where(keep, codes, model(codes, classes).argmax(-1)[:, :LENGTH])


def _mixed_afterwards(model, codes, classes, sigma, generator, masks, sampling):
    """Samples freely and puts real codes in afterwards."""
    keep = preserved(codes.shape, sigma, masks)
    return torch.where(keep, codes, model.generate(classes, generator, **vars(sampling)))


def _upside_down(model, codes, classes, sigma, generator, masks, sampling):
    return preservation_sample(model, codes, classes, 1 - sigma, generator, masks, sampling)


def _one_mask_stream(model, codes, classes, sigma, generator, masks, sampling):
    """The mask comes from the sampler's own generator and shifts its draws."""
    return preservation_sample(model, codes, classes, sigma, generator, generator, sampling)


def _whole_pictures(model, codes, classes, sigma, generator, masks, sampling):
    keep = preserved((len(codes), 1), sigma, masks).expand_as(codes)
    return model.generate(classes, generator, forced=(codes, keep), **vars(sampling))


@pytest.mark.parametrize("broken", [_clean_prefix, _mixed_afterwards, _upside_down, _one_mask_stream, _whole_pictures])
def test_planted_samplers_are_seen(broken, model):
    caught = []
    for check in CHECKS:
        try:
            check(broken, model)
        except AssertionError:
            caught.append(check)
    assert caught, broken.__name__


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.7, 1.0])
def test_the_share_kept_is_binomial(sigma):
    keep = preserved((100, 64), sigma, draw(3))
    assert binomtest(int(keep.sum()), keep.numel(), sigma).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [-0.1, 1.5, float("nan")])
def test_a_sigma_that_is_no_share_is_refused(sigma, model):
    with pytest.raises(ValueError, match="sigma"):
        preservation_sample(model, *real(), sigma, draw(), draw())


# -- inputs of the decoder -----------------------------------------------------------------------------------------

def test_reencoded_codes_are_those_of_the_made_picture(tokenizer):
    codes, _ = real(130)                                         # more than one chunk
    again = post.decoder_input(tokenizer, codes)
    assert torch.equal(again[129:], tokenizer.encode(tokenizer.decode(codes[129:])))
    assert torch.equal(post.decoder_input(tokenizer, codes, "tokens"), codes) and not torch.equal(again, codes)
    with pytest.raises(ValueError, match="source"):
        post.decoder_input(tokenizer, codes, "pixels")


def test_synthetic_input_changes_the_share_asked(tokenizer):
    images = torch.rand(60, 3, 32, 32, generator=draw())
    clean = tokenizer.encode(images)
    assert torch.equal(post.synthetic_input(tokenizer, images, 0.0, 6, draw()), clean)
    changed = int((post.synthetic_input(tokenizer, images, 0.6, 6, draw()) != clean).sum())
    assert binomtest(changed, clean.numel(), 0.6 * 5 / 6).pvalue > 1e-3


# -- only the decoder moves ------------------------------------------------------------------------------------------

def tuned(tokenizer: VQGrid, codes: torch.Tensor, images: torch.Tensor, everything: bool = False) -> list[float]:
    """A few steps of post-training as the recipe takes them; everything: the planted mistake, the encoder learns too."""
    if not everything:
        post.freeze_all_but_decoder(tokenizer)
    opt = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(12):
        tokenizer.train()
        loss = torch.nn.functional.mse_loss(tokenizer(images).images, images) if everything else \
            post.decoder_loss(tokenizer, codes, images, torch.nn.functional.mse_loss)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(float(loss.detach()))
    tokenizer.eval()
    return losses


def test_post_training_moves_the_decoder_alone(tokenizer, model):
    images = torch.rand(6, 3, 32, 32, generator=draw()) * 0.2
    codes, classes = tokenizer.encode(images), torch.arange(6)
    parts = post.decoder_parts(tokenizer)
    before = post.frozen_hash(tokenizer, parts), post.frozen_hash(tokenizer), post.frozen_hash(model)
    mixed = post.decoder_input(tokenizer, preservation_sample(model, codes, classes, 0.7, draw(), draw(1)))
    losses = tuned(tokenizer, mixed, images)
    assert losses[-1] < 0.8 * losses[0]
    assert (post.frozen_hash(tokenizer, parts), post.frozen_hash(model)) == (before[0], before[2])
    assert post.frozen_hash(tokenizer) != before[1] and torch.equal(tokenizer.encode(images), codes)


def test_a_moved_encoder_is_seen(tokenizer):
    images = torch.rand(6, 3, 32, 32, generator=draw()) * 0.2
    parts, codes = post.decoder_parts(tokenizer), tokenizer.encode(images)
    before = post.frozen_hash(tokenizer, parts)
    tuned(tokenizer, codes, images, everything=True)
    assert post.frozen_hash(tokenizer, parts) != before


def test_the_hash_sees_the_least_change_but_not_the_sign_of_zero(tokenizer):
    weight = tokenizer.to_latents.weight.data
    weight[0, 0] = -0.0
    before = post.frozen_hash(tokenizer)
    weight[0, 0] = 0.0
    assert post.frozen_hash(tokenizer) == before
    weight[0, 1] = torch.nextafter(weight[0, 1], torch.full_like(weight[0, 1], 9.0))
    assert post.frozen_hash(tokenizer) != before


def test_the_decoder_is_what_it_says(tokenizer):
    parts = post.decoder_parts(tokenizer)
    assert parts and all(name.startswith(("decoder.", "linear_out.")) for name in parts)
    frozen = [name for name, p in post.freeze_all_but_decoder(tokenizer).named_parameters() if not p.requires_grad]
    assert set(frozen) | set(parts) == {name for name, _ in tokenizer.named_parameters()} and not set(frozen) & set(parts)


def test_clean_tokens_make_it_ordinary_reconstruction(tokenizer, model):
    images = torch.rand(4, 3, 32, 32, generator=draw())
    codes = tokenizer.encode(images)
    kept = preservation_sample(model, codes, torch.arange(4), 1.0, draw(), draw())
    loss = post.decoder_loss(tokenizer, post.decoder_input(tokenizer, kept, "tokens"), images, torch.nn.functional.mse_loss)
    want = torch.nn.functional.mse_loss(tokenizer(images).images, images)
    assert torch.allclose(loss, want, atol=1e-6)
