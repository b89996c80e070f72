"""Exercises on what all papers share: the nearest code with its straight-through gradient, and the copy rate."""
import torch
from torch import Tensor

from frugal.core.image_metrics import copy_rate as reference_rate
from frugal.explore.exercises import Exercise, equal, wrong

__all__ = ["EXERCISES", "copy_rate", "quantize"]


def _quantize(latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    codes = ((latents[:, None] - codebook) ** 2).sum(-1).argmin(1)
    return latents + (codebook[codes] - latents).detach(), codes


def _check_quantize(answer) -> None:
    draw = torch.Generator().manual_seed(0)
    for rows, size, dim in [(5, 4, 2), (40, 16, 3), (1, 2, 8)]:
        latents = torch.randn(rows, dim, generator=draw).requires_grad_()
        codebook = torch.randn(size, dim, generator=draw) * torch.linspace(0.3, 3, size)[:, None]
        case = f"quantize(<{rows} latents of {dim}>, <{size} codes>)"
        want, codes = _quantize(latents, codebook)
        got = answer(latents, codebook)
        if not isinstance(got, tuple) or len(got) != 2:
            wrong(f"got a {type(got).__name__}, expected two tensors", "return the code vectors and their numbers", case)
        if not torch.equal(got[1].long(), codes):
            largest = torch.equal(got[1].long(), (latents @ codebook.T).argmax(1))
            wrong("the codes are not the nearest ones", "the largest product is the nearest code only if all codes have one length"
                  if largest else "nearest means the least squared distance: a minimum over the codes", case)
        if not torch.allclose(got[0], want, atol=1e-6):
            wrong("the vectors are not those of the codes", "forward, the decoder must see codebook[codes], not the latents", case)
        grad = _gradient(got[0], latents)
        if grad is None:
            wrong("no gradient reaches the latents", "argmin has none: add latents + (chosen - latents).detach()", case)
        equal(grad, torch.arange(float(latents.numel())).view_as(latents),
              "the gradient passes through unchanged: detach the difference, not the latents", case=case)


def _gradient(vectors: Tensor, latents: Tensor) -> Tensor | None:
    """Gradient of a weighted sum of the vectors; None where none arrives."""
    if not vectors.requires_grad:
        return None
    weights = torch.arange(float(latents.numel())).view_as(latents)
    return torch.autograd.grad((vectors * weights).sum(), latents, allow_unused=True)[0]


def _no_gradient(latents: Tensor, codebook: Tensor):
    codes = _quantize(latents, codebook)[1]
    return codebook[codes], codes


def _product(latents: Tensor, codebook: Tensor):
    codes = (latents @ codebook.T).argmax(1)
    return latents + (codebook[codes] - latents).detach(), codes


def _latents_back(latents: Tensor, codebook: Tensor):
    return latents * 1.0, _quantize(latents, codebook)[1]


def _doubled(latents: Tensor, codebook: Tensor):
    vectors, codes = _quantize(latents, codebook)
    return vectors + latents - latents.detach(), codes


quantize = Exercise(
    key="quantize", title="The nearest code, and a gradient around it",
    prompt="A quantizer replaces each latent by its nearest code. Choosing has no gradient, so the straight-through trick lets the "
           "decoder's gradient pass to the latent as if nothing had happened. Return the code vectors, with that gradient, and the "
           "numbers of the codes.",
    stub="""def quantize(latents: torch.Tensor, codebook: torch.Tensor):
    raise NotImplementedError  # yours: (N, d), (K, d) -> (N, d), (N,)
""",
    test=_check_quantize,
    hints=("Squared distances of all pairs: (latents[:, None] - codebook) ** 2, summed over the last axis.",
           "x + (y - x).detach() is y in the forward pass, and has the gradient of x."),
    difficulty=1, minutes=8, reference=_quantize,
    wrong=[(_no_gradient, "detach()"), (_product, "one length"), (_latents_back, "codebook[codes]"),
           (_doubled, "unchanged")])


def _check_copies(answer) -> None:
    draw = torch.Generator().manual_seed(0)
    for count, near in [(40, 10), (40, 0), (60, 60)]:
        train, held_out = torch.randn(50, 3, generator=draw), torch.randn(200, 3, generator=draw)
        made = torch.cat([train[torch.arange(near) % 50] + 1e-5, torch.randn(count - near, 3, generator=draw) + 20])
        case = f"copy_rate(<{near} of {count} are copies>, <train>, <held out>)"
        got, want = float(answer(made, train, held_out)), reference_rate(made, train, held_out)
        _explain(got, want, near, count, case)
    train, held_out = torch.randn(100, 2, generator=draw), torch.randn(500, 2, generator=draw) * 1.5
    made = torch.randn(300, 2, generator=draw)
    equal(float(answer(made, train, held_out)), reference_rate(made, train, held_out),
          "the threshold is the 1st percentile of the held-out pictures' distances to their nearest training picture: they are what "
          "a picture that was never seen looks like", tolerance=0.012, case="copy_rate(<300 fresh>, <train>, <held out>)")


def _explain(got: float, want: float, near: int, count: int, case: str) -> None:
    if abs(got - want) < 1e-6:
        return
    if got > 1:
        wrong(f"got {got:g}, expected {want:g}", "a rate is a share of the made pictures, not a count", case)
    if got > want:
        wrong(f"got {got:g}, expected {want:g}", "does the threshold come from the made pictures? Then some always fall below it", case)
    wrong(f"got {got:g}, expected {want:g}", "compare each made picture's distance to its nearest *training* picture with the threshold", case)


def _counted(made: Tensor, train: Tensor, held_out: Tensor) -> float:
    return reference_rate(made, train, held_out) * len(made)


def _to_held_out(made: Tensor, train: Tensor, held_out: Tensor) -> float:
    threshold = torch.cdist(held_out, train).min(1).values.quantile(0.01)
    return float((torch.cdist(made, held_out).min(1).values < threshold).float().mean())


def _own_distances(made: Tensor, train: Tensor, held_out: Tensor) -> float:
    nearest = torch.cdist(made, train).min(1).values
    return float((nearest <= nearest.quantile(0.25)).float().mean())


def _median(made: Tensor, train: Tensor, held_out: Tensor) -> float:
    threshold = torch.cdist(held_out, train).min(1).values.median()
    return float((torch.cdist(made, train).min(1).values < threshold).float().mean())


copy_rate = Exercise(
    key="copy_rate", title="How much was copied?",
    prompt="A generator that recites its training pictures has a fine eFID. Count its copies: a made picture is a copy if it lies closer "
           "to a training picture than the threshold, which is the 1st percentile of the distances from held-out pictures to their nearest "
           "training picture. All sets are features, one row a picture; distances are Euclidean.",
    stub="""def copy_rate(made: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor):
    raise NotImplementedError  # yours: (N, f), (M, f), (H, f) -> a share from 0 to 1
""",
    test=_check_copies,
    hints=("torch.cdist(a, b).min(1).values gives each row's distance to its nearest row of b.",
           "The threshold comes from held-out pictures alone: .quantile(0.01)."),
    difficulty=1, minutes=6, reference=reference_rate,
    wrong=[(_counted, "a share"), (_to_held_out, "training"), (_own_distances, "from the made"), (_median, "1st percentile")])

EXERCISES = [quantize, copy_rate]
