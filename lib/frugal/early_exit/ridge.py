"""Ridge regression over a stream of text: sums now, an affine map later, no gradients.

Source: normal equations with a penalty, Hoerl and Kennard, Technometrics 12 (1970), equation 2.1.
Shapes: N rows, h inputs, o outputs.
"""
import torch
from jaxtyping import Float
from torch import Tensor

from frugal.core.depth import Affine

SINKS = 4                 # first positions of a text whose states are far larger than all others, and would rule the fit


class RidgeSums:
    """Sums of x x^T and x y^T over all rows seen, in fp64, with a one appended to x for the bias."""

    def __init__(self, num_inputs: int, num_outputs: int):
        self.xx = torch.zeros(num_inputs + 1, num_inputs + 1, dtype=torch.float64)
        self.xy = torch.zeros(num_inputs + 1, num_outputs, dtype=torch.float64)
        self.num_rows = 0

    def add(self, x: Float[Tensor, "n h"], y: Float[Tensor, "n o"], weight: Float[Tensor, "n"] | None = None) -> None:
        """Takes rows in. weight: how much each counts (default 1)."""
        x = torch.cat([x, torch.ones(len(x), 1)], 1)
        scaled = x if weight is None else x * weight[:, None]
        self.xx += (scaled.T @ x).double()
        self.xy += (scaled.T @ y).double()
        self.num_rows += len(x)

    def solve(self, penalty: float = 1e-3, normalised: bool = True) -> Affine:
        """The affine map of least squared error plus `penalty` x mean square input x |weight|^2; the bias is free.

        Raises ValueError when there are fewer rows than inputs, or a penalty that is not positive.
        """
        size = len(self.xx) - 1
        if self.num_rows < size or not penalty > 0:
            raise ValueError(f"{self.num_rows} rows for {size} inputs with penalty {penalty}: give at least as many rows as "
                             "inputs and a penalty above 0")
        damp = torch.full((size + 1,), penalty * float(self.xx.diagonal()[:size].mean()), dtype=torch.float64)
        damp[size] = 0
        found = torch.linalg.solve(self.xx + damp.diag(), self.xy).float()
        return Affine(found[:size].T.contiguous(), found[size].contiguous(), normalised)
