"""The family's ledger: the claims of its three papers, then those of the exit baselines, in the order of the notebook."""
from frugal.early_exit import claims_duo_llm, claims_exits, claims_r2r, claims_skipdecode

CLAIMS = [*claims_skipdecode.CLAIMS, *claims_duo_llm.CLAIMS, *claims_r2r.CLAIMS, *claims_exits.CLAIMS]
__all__ = ["CLAIMS"]
