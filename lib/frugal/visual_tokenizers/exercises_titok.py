"""Exercise on TiTok: the way of a picture through K latent tokens, and nothing around them."""
from collections.abc import Callable

import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong
from frugal.visual_tokenizers.titok import join_latents, latent_outputs

__all__ = ["EXERCISES", "through_latents"]

BATCH, PATCHES, TOKENS, WIDTH = 3, 10, 4, 6


def _reference(patches: Tensor, latents: Tensor, masks: Tensor, encoder: Callable, quantize: Callable, decoder: Callable) -> Tensor:
    codes = quantize(latent_outputs(encoder(join_latents(patches, latents)), len(latents)))
    masks = masks.expand(len(codes), -1, -1)
    return decoder(torch.cat([masks, codes], 1))[:, :masks.shape[1]]


class _Parts:
    """Made-up networks of the exercise: mixing ones, whose outputs depend on every input row."""

    def __init__(self, seed: int, num_patches: int = PATCHES, tokens: int = TOKENS):
        draw = torch.Generator().manual_seed(seed)
        rows = num_patches + tokens
        self.patches = torch.randn(BATCH, num_patches, WIDTH, generator=draw)
        self.latents = torch.randn(tokens, WIDTH, generator=draw)
        self.masks = torch.randn(num_patches, WIDTH, generator=draw)
        self.mixes = [torch.randn(rows, rows, generator=draw) * rows ** -0.5 for _ in range(2)]
        self.rows, self.tokens, self.seen = rows, tokens, {}

    def encoder(self, x: Tensor) -> Tensor:
        return self._mix("encoder", x, 0)

    def decoder(self, x: Tensor) -> Tensor:
        return self._mix("decoder", x, 1)

    def _mix(self, name: str, x: Tensor, place: int) -> Tensor:
        if tuple(x.shape) != (BATCH, self.rows, WIDTH):
            wrong(f"the {name} was given {tuple(x.shape)}, expected ({BATCH}, {self.rows}, {WIDTH})",
                  f"the {name}'s row holds {'patches and' if place == 0 else 'mask tokens and'} latent tokens, for each picture")
        self.seen[name] = x
        return (self.mixes[place] @ x).tanh() + x

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds to halves: piecewise constant, so no gradient passes, as with codes."""
        if tuple(x.shape) != (BATCH, self.tokens, WIDTH):
            wrong(f"quantized {tuple(x.shape)}, expected ({BATCH}, {self.tokens}, {WIDTH})",
                  "only the outputs at the K latent tokens become codes")
        self.seen["quantized"] = x
        return (x.detach() * 2).round() / 2


def _check(answer) -> None:
    for seed, patches, tokens in ((0, PATCHES, TOKENS), (1, 5, 5), (2, 3, 6), (3, 8, 1)):
        parts = _Parts(seed, patches, tokens)
        case = f"through_latents(<{patches} patches>, <{tokens} latent tokens>, ...)"
        given = parts.patches.clone().requires_grad_(True)
        got = answer(given, parts.latents.clone(), parts.masks.clone(), parts.encoder, parts.quantize, parts.decoder)
        if tuple(got.shape) != (BATCH, patches, WIDTH):
            wrong(f"got shape {tuple(got.shape)}, expected ({BATCH}, {patches}, {WIDTH})", "one output for each patch of each picture", case)
        _check_steps(parts, case)
        if got.requires_grad and float(torch.autograd.grad(got.sum(), given, allow_unused=True)[0].abs().sum()) > 0:
            wrong("the output moves with the patches while the codes stay", "a leak: the decoder gets mask tokens and codes, no patches", case)
        own = _Parts(seed, patches, tokens)
        want = _reference(own.patches, own.latents, own.masks, own.encoder, own.quantize, own.decoder)
        if not torch.allclose(got, want, atol=1e-5):
            wrong("the output differs", "the decoder's outputs are read at the mask tokens, which stand first", case)


def _check_steps(parts: _Parts, case: str) -> None:
    """What each network was given, in turn."""
    own = _Parts.__new__(_Parts)
    own.__dict__ |= parts.__dict__ | {"seen": {}}
    if not {"encoder", "quantized", "decoder"} <= set(parts.seen):
        wrong(f"used: {', '.join(parts.seen) or 'nothing'}", "the way is encoder, quantize, decoder, each once", case)
    states = own.encoder(join_latents(parts.patches, parts.latents))
    if not torch.allclose(parts.seen["encoder"].detach(), own.seen["encoder"], atol=1e-5):
        wrong("the encoder's input differs", "patches first, then the same latent tokens for every picture", case)
    found, right = parts.seen["quantized"].detach(), latent_outputs(states, parts.tokens)
    if not torch.allclose(found, right, atol=1e-5):
        if parts.tokens <= states.shape[1] - parts.tokens and torch.allclose(found, states[:, :parts.tokens], atol=1e-5):
            wrong("quantized the outputs at patches", "the first outputs belong to patches; the latent tokens stand last", case)
        if torch.allclose(found.flatten(1).sort(1).values, right.flatten(1).sort(1).values, atol=1e-5):
            wrong("the numbers of the latent outputs are there, but scrambled", "reshape does not transpose: nothing has to be reshaped here", case)
        wrong("what was quantized differs", "take the encoder's outputs at the latent tokens as they are", case)


def _reads_patches(patches, latents, masks, encoder, quantize, decoder):
    """Quantizes outputs at patches."""
    codes = quantize(encoder(join_latents(patches, latents))[:, :len(latents)])
    return decoder(torch.cat([masks.expand(len(codes), -1, -1), codes], 1))[:, :len(masks)]


def _scrambles(patches, latents, masks, encoder, quantize, decoder):
    """(N, K, w) to (N, w, K) by reshape."""
    states = latent_outputs(encoder(join_latents(patches, latents)), len(latents))
    codes = quantize(states.reshape(len(states), states.shape[2], states.shape[1]).transpose(1, 2))
    return decoder(torch.cat([masks.expand(len(codes), -1, -1), codes], 1))[:, :len(masks)]


def _leaks(patches, latents, masks, encoder, quantize, decoder):
    """Hands the patches to the decoder in place of mask tokens."""
    codes = quantize(latent_outputs(encoder(join_latents(patches, latents)), len(latents)))
    return decoder(torch.cat([patches, codes], 1))[:, :patches.shape[1]]


def _reads_codes(patches, latents, masks, encoder, quantize, decoder):
    """Reads the decoder's last outputs."""
    codes = quantize(latent_outputs(encoder(join_latents(patches, latents)), len(latents)))
    return decoder(torch.cat([masks.expand(len(codes), -1, -1), codes], 1))[:, -len(masks):]


def _latents_first(patches, latents, masks, encoder, quantize, decoder):
    """Latent tokens before the patches."""
    row = torch.cat([latents.expand(len(patches), -1, -1), patches], 1)
    codes = quantize(encoder(row)[:, :len(latents)])
    return decoder(torch.cat([masks.expand(len(codes), -1, -1), codes], 1))[:, :len(masks)]


through_latents = Exercise(
    key="through_latents", title="Through K tokens, and nothing around them", prompt=
    "Take the embedded patches (B, P, w) of B pictures through TiTok. The encoder reads the patches followed by the K learned latent "
    "tokens (K, w); its outputs at the latent tokens, (B, K, w), go through `quantize`. The decoder reads P mask tokens (P, w) followed by "
    "what `quantize` gave; return its outputs at the mask tokens, (B, P, w). The output must not depend on the patches but through the codes.",
    stub="def through_latents(patches, latents, masks, encoder, quantize, decoder) -> torch.Tensor:\n    raise NotImplementedError  # yours",
    test=_check, hints=("latents.expand(len(patches), -1, -1) repeats the learned tokens for every picture.",
                        "The same slicing comes twice: the encoder's last K outputs, the decoder's first P."),
    difficulty=1, minutes=10, reference=_reference,
    wrong=[(_reads_patches, "first outputs belong to patches"), (_scrambles, "reshape does not transpose"), (_leaks, "leak"),
           (_reads_codes, "read at the mask tokens"), (_latents_first, "patches first")])

EXERCISES = [through_latents]
