"""Early exit and adaptive depth: fewer layers for the tokens that do not need them, and what it really saves."""
