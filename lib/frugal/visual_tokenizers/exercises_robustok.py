"""Exercise on RobusTok: replacing codes behind the quantizer without disturbing what the quantizer learns."""
import torch
from torch import Tensor

from frugal.explore.exercises import Exercise, wrong
from frugal.models.quantizers import Quantized
from frugal.visual_tokenizers.robustok import perturb_latent as reference_perturb

__all__ = ["EXERCISES", "perturb_latent"]

TOKENS, CODES = 8, 32


def _reference(z: Tensor, codes: Tensor, codebook: Tensor, alpha: float, beta: float, delta: int, generator: torch.Generator) -> Tensor:
    quantized = Quantized(z + (codebook[codes] - z).detach(), codes, z.new_zeros(()))
    return reference_perturb(z, quantized, codebook, generator, alpha, beta, delta)


def _world(pictures: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents that want gradients, the numbers of their nearest codes, and the codebook; all in general position."""
    draw = torch.Generator().manual_seed(3)
    codebook = torch.randn(CODES, 3, generator=draw)
    z = torch.randn(pictures, TOKENS, 3, generator=draw)
    return z.requires_grad_(), torch.cdist(z.detach(), codebook).argmin(-1), codebook


def _picked(out: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(out.detach(), codebook).argmin(-1)


def _check(answer) -> None:
    _identity(answer)
    _pictures(answer)
    _reach(answer)
    _rate(answer)
    _gradient(answer)


def _identity(answer) -> None:
    z, codes, codebook = _world(10)
    for alpha, delta in ((0.0, 6), (1.0, 1)):
        case = f"perturb(z, codes, codebook, {alpha}, 1.0, {delta}, generator)"
        out = answer(z, codes, codebook, alpha, 1.0, delta, torch.Generator().manual_seed(0))
        if out.shape != z.shape:
            wrong(f"shape {tuple(out.shape)}, expected {tuple(z.shape)}", "return a code vector for each latent", case)
        if not torch.equal(_picked(out, codebook), codes):
            wrong(f"{int((_picked(out, codebook) != codes).sum())} of {codes.numel()} codes changed, expected none",
                  "with alpha 0 nothing is replaced, and with delta 1 the only candidate is the code itself: does your list of "
                  "neighbours begin with it?", case)


def _pictures(answer) -> None:
    z, codes, codebook = _world(20)
    out = answer(z, codes, codebook, 1.0, 0.25, 8, torch.Generator().manual_seed(1))
    changed = (_picked(out, codebook) != codes).any(1)
    case = "perturb(z, codes, codebook, 1.0, 0.25, 8, generator)"
    if changed[5:].any():
        wrong(f"codes changed in {int(changed.sum())} of 20 pictures, expected the first 5",
              "beta is a share of the pictures, not of the tokens: the first int(beta * B) are perturbed, the others stay whole", case)
    if not changed[:5].all():
        wrong(f"codes changed in {int(changed[:5].sum())} of the first 5 pictures", "with alpha 1 all their tokens are up for a draw", case)


def _reach(answer) -> None:
    z, codes, codebook = _world(50)
    out = answer(z, codes, codebook, 1.0, 1.0, 4, torch.Generator().manual_seed(2))
    near = torch.cdist(z.detach(), codebook).argsort(-1)[..., :4]
    stray = ~(near == _picked(out, codebook)[..., None]).any(-1)
    if stray.any():
        wrong(f"{int(stray.sum())} of {stray.numel()} tokens got a code that is not among the 4 nearest of their latent",
              "sort the codes by their distance to the latent z, nearest first; their numbers say nothing about distance",
              "perturb(z, codes, codebook, 1.0, 1.0, 4, generator)")


def _rate(answer) -> None:
    z, codes, codebook = _world(400)
    for alpha, delta in ((1.0, 2), (0.5, 4), (1.0, 6)):
        out = answer(z, codes, codebook, alpha, 1.0, delta, torch.Generator().manual_seed(4))
        got, want = float((_picked(out, codebook) != codes).double().mean()), alpha * (delta - 1) / delta
        if abs(got - want) > 0.045:
            wrong(f"{got:.2f} of the codes changed, expected about alpha (delta - 1) / delta = {want:.2f}",
                  "with probability alpha, each token on its own, draw one of the delta nearest, the code itself included",
                  f"perturb(z, codes, codebook, {alpha}, 1.0, {delta}, generator)")


def _gradient(answer) -> None:
    z, codes, codebook = _world(10)
    out = answer(z, codes, codebook, 1.0, 1.0, 6, torch.Generator().manual_seed(5))
    slope = torch.autograd.grad(out.sum(), z, allow_unused=True)[0] if out.requires_grad else None
    if slope is None or not torch.allclose(slope, torch.ones_like(slope)):
        share = 0.0 if slope is None else float((slope == 1).double().mean())
        wrong(f"the gradient with respect to z is 1 at {share:.0%} of the places, expected at all",
              "pass it straight through: z + (vector - z).detach(), at the perturbed places too",
              "perturb(z, codes, codebook, 1.0, 1.0, 6, generator)")


def _draws(z: Tensor, codes: Tensor, codebook: Tensor, alpha: float, delta: int, generator: torch.Generator) -> Tensor:
    """Numbers after perturbing every picture."""
    near = torch.cdist(z.detach(), codebook).argsort(-1)[..., :delta]
    pick = near.gather(-1, torch.randint(delta, (*codes.shape, 1), generator=generator))[..., 0]
    return torch.where(torch.rand(codes.shape, generator=generator) < alpha, pick, codes)


def _through(z: Tensor, vectors: Tensor) -> Tensor:
    return z + (vectors - z).detach()


def _tokens(z, codes, codebook, alpha, beta, delta, generator):
    """beta over tokens."""
    moved = _draws(z, codes, codebook, alpha, delta, generator)
    return _through(z, codebook[torch.where(torch.rand(codes.shape, generator=generator) < beta, moved, codes)])


def _never_itself(z, codes, codebook, alpha, beta, delta, generator):
    """The delta nearest others."""
    near = torch.cdist(z.detach(), codebook).argsort(-1)[..., 1:delta + 1]
    pick = near.gather(-1, torch.randint(delta, (*codes.shape, 1), generator=generator))[..., 0]
    pick = torch.where(torch.rand(codes.shape, generator=generator) < alpha, pick, codes)
    pick[int(beta * len(z)):] = codes[int(beta * len(z)):]
    return _through(z, codebook[pick])


def _cut(z, codes, codebook, alpha, beta, delta, generator):
    """No straight-through at what was picked."""
    pick = _draws(z, codes, codebook, alpha, delta, generator)
    pick[int(beta * len(z)):] = codes[int(beta * len(z)):]
    return torch.where((pick == codes)[..., None], _through(z, codebook[codes]), codebook[pick])


def _numbers(z, codes, codebook, alpha, beta, delta, generator):
    """Neighbours by number."""
    hit = torch.rand(codes.shape, generator=generator) < alpha
    pick = (codes + torch.randint(delta, codes.shape, generator=generator) * hit) % len(codebook)
    pick[int(beta * len(z)):] = codes[int(beta * len(z)):]
    return _through(z, codebook[pick])


def _one_draw(z, codes, codebook, alpha, beta, delta, generator):
    """One decision for all tokens."""
    pick = _draws(z, codes, codebook, 1.0, delta, generator) if torch.rand((), generator=generator) < alpha else codes.clone()
    pick[int(beta * len(z)):] = codes[int(beta * len(z)):]
    return _through(z, codebook[pick])


perturb_latent = Exercise(
    key="perturb_latent", title="Perturb behind the quantizer", prompt=
    "`z` (B, T, d) are latents, `codes` (B, T) the numbers of their nearest vectors in `codebook` (K, d). In the first `int(beta * B)` "
    "pictures replace each token's vector, with probability `alpha`, by one of the `delta` nearest vectors of its latent, drawn evenly "
    "(the nearest is the code itself). Return the vectors for the decoder (B, T, d), with the gradient passed straight through to `z`.",
    stub=
    "def perturb(z: torch.Tensor, codes: torch.Tensor, codebook: torch.Tensor, alpha: float, beta: float, delta: int,\n"
    "            generator: torch.Generator) -> torch.Tensor:\n    raise NotImplementedError  # yours",
    test=_check, hints=("`torch.cdist(z, codebook).argsort(-1)[..., :delta]` lists the candidates of every token.",
                        "`near.gather(-1, rank[..., None])[..., 0]` takes one of them for each token.",
                        "Straight through: the value of `vector`, the gradient of `z`."),
    difficulty=2, minutes=15, reference=_reference,
    wrong=[(_tokens, "share of the pictures"), (_never_itself, "begin with it"), (_cut, "straight through"),
           (_numbers, "numbers say nothing"), (_one_draw, "each token on its own")])
EXERCISES = [perturb_latent]
