"""A family that costs nothing, importable by worker processes: what sweeps are tested with."""
