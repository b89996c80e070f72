"""The family's ledger: the claims of its five papers, in the order of the notebook."""
from frugal.kv_eviction import claims_based, claims_cache, claims_keyformer, claims_tim

CLAIMS = [*claims_keyformer.CLAIMS, *claims_cache.CLAIMS, *claims_tim.CLAIMS, *claims_based.CLAIMS]
__all__ = ["CLAIMS"]
