"""The family's ledger: the claims of its three papers, then those of the exit baselines, in the order of the notebook."""
from frugal.early_exit import claims_exits

CLAIMS = [*claims_exits.CLAIMS]
__all__ = ["CLAIMS"]
