"""Post-training: teach the decoder what the generator really sends it.

The generator is frozen, and so are encoder and codebook. For a real picture with codes q the generator runs, but each code is
q's with probability sigma (the preservation ratio), so that the picture made is a neighbour of the real one. The decoder alone
is then tuned to turn such codes into the real picture.
Source: arXiv 2509.12474, section 3.3, and its released code: sigma 0.7, the made picture is encoded again and those codes are
the decoder's input, lower rate, no weight decay, no perturbation.
Differs: source="tokens" gives the decoder the mixed codes as they are, which is what it gets at test time; no GAN.
Shapes: B pictures, L codes a picture.
"""
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from frugal.models import load_weights
from frugal.models.mini_ar import MiniAR
from frugal.models.vq_grid import VQGrid, build_vq_grid
from frugal.visual_tokenizers.robustok import Share, perturb_codes
from frugal.visual_tokenizers.robustok_generated import Sampling

SOURCES = ("reencode", "tokens")
CHUNK = 128


def preserved(shape: torch.Size | tuple[int, ...], sigma: Share, generator: torch.Generator) -> Bool[Tensor, "b l"]:
    """Which codes are kept: each one on its own with probability sigma. Raises ValueError for a sigma outside [0, 1]."""
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma must be in [0, 1], got {sigma}; it is the share of the picture's own codes that are kept")
    return torch.rand(shape, generator=generator) < sigma


def preservation_sample(model: MiniAR, codes: Int[Tensor, "b l"], classes: Int[Tensor, "b"], sigma: Share,
                        generator: torch.Generator, masks: torch.Generator, sampling: Sampling = Sampling()
                        ) -> Int[Tensor, "b l"]:
    """Codes sampled one after the other, where each place has probability sigma of getting the picture's own code; sampling
    goes on from the mixture.

    generator: for sampling; masks: for what is kept, apart, so that sigma = 0 is the plain sampler draw for draw.
    sigma = 1 returns `codes`. Raises ValueError for a sigma outside [0, 1].
    """
    keep = preserved(codes.shape, sigma, masks)
    return model.generate(classes, generator, forced=(codes, keep), length=codes.shape[1], **vars(sampling))


@torch.no_grad()
def decoder_input(tokenizer: VQGrid, codes: Int[Tensor, "b l"], source: str = "reencode") -> Int[Tensor, "b l"]:
    """Codes that the decoder is tuned on: those of the decoded picture, encoded again, or ("tokens") the codes themselves."""
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if source == "tokens":
        return codes
    return torch.cat([tokenizer.encode(tokenizer.decode(part)) for part in codes.split(CHUNK)])


def synthetic_input(tokenizer: VQGrid, images: Float[Tensor, "b 3 h w"], share: Share, delta: int, generator: torch.Generator
                    ) -> Int[Tensor, "b l"]:
    """Control: a share of the codes replaced by near ones (RobusTok's perturbation, every picture), no generator involved."""
    out = []
    with torch.no_grad():
        for part in images.split(CHUNK):
            latents = tokenizer.quantizer.prepared(tokenizer.latents(part).float())
            codes = tokenizer.quantizer.nearest(latents)
            out.append(perturb_codes(latents, tokenizer.quantizer.codebook, codes, generator, share, delta))
    return torch.cat(out)


def decoder_loss(tokenizer: VQGrid, codes: Int[Tensor, "b l"], images: Float[Tensor, "b 3 h w"],
                 picture_loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`picture_loss(made, images)` of the pictures that the decoder makes of the codes. Gradients reach the decoder only:
    the codes are looked up in a codebook that does not move."""
    with torch.no_grad():
        vectors = tokenizer.quantizer.lookup(codes)
    return picture_loss(tokenizer.decode_latents(vectors), images)


def decoder_parts(tokenizer: VQGrid) -> list[str]:
    """Names of the tensors that post-training may change."""
    return [name for name in tokenizer.state_dict() if name.startswith(("decoder.", "linear_out."))]


def freeze_all_but_decoder(tokenizer: VQGrid) -> VQGrid:
    """Lets gradients reach decoder tensors only; in place."""
    names = set(decoder_parts(tokenizer))
    for name, parameter in tokenizer.named_parameters():
        parameter.requires_grad_(name in names)
    return tokenizer


def frozen_hash(model: nn.Module, leave_out: Sequence[str] = ()) -> str:
    """sha256 over the values of all tensors but those left out, 16 hex digits: equal before and after means untouched."""
    digest, skipped = hashlib.sha256(), set(leave_out)
    for name, tensor in sorted(model.state_dict().items()):
        if name not in skipped:
            # Averaging a weight with itself may turn -0.0 into 0.0, which is the same value in other bytes; + 0.0 settles on one.
            values = tensor.detach() + 0.0 if tensor.is_floating_point() else tensor.detach()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
            digest.update(values.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def load_post_trained(name: str = "post_trained_64") -> VQGrid:
    """The tokenizer that `name` was tuned from, with the tuned decoder; encoder and codes are the same. Raises WeightsError."""
    decoder, card = load_weights(name)
    state, base = load_weights(card["tokenizer"])
    model = build_vq_grid(base["shape"])
    model.load_state_dict(state | decoder)
    return model.requires_grad_(False).eval()
