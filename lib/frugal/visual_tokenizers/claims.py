"""The family's ledger: the claims of its eight papers, in the order of the notebook."""
from frugal.visual_tokenizers.joined import modules

CLAIMS = [claim for module in modules("claims") for claim in module.CLAIMS]
__all__ = ["CLAIMS"]
