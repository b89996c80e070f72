"""The family's ledger: the claims of its three papers, in the order of the notebook."""
from frugal.token_dropping import claims_hired, claims_paint, claims_vista

CLAIMS = [*claims_hired.CLAIMS, *claims_paint.CLAIMS, *claims_vista.CLAIMS]
__all__ = ["CLAIMS"]
