"""Two cheap methods and a workload that leaves a line for each run it really makes."""
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from frugal.core.budgets import resolve


class Square:
    name: ClassVar[str] = "square"

    def value(self, x):
        return x * x


class Root:
    name: ClassVar[str] = "root"

    def value(self, x):
        return x.abs().sqrt()


@dataclass(frozen=True)
class Sums:
    """Sum of a method's values over a share of 64 random numbers. pause_s: how long a run takes."""
    name: ClassVar[str] = "sums"
    axis: ClassVar[str] = "tokens"
    version: ClassVar[str] = "1"
    default_budgets: ClassVar[tuple] = (0.25, 0.5)
    pause_s: float = 0.0
    log: str = ""

    def model_hash(self):
        return "toy"

    def run(self, method, budget, seed):
        start = time.perf_counter()
        count = resolve(budget, 64)
        x = torch.randn(64, generator=torch.Generator().manual_seed(seed))[:count]
        time.sleep(self.pause_s)
        if self.log:
            Path(self.log, f"{method.name}-{budget}-{seed}-{time.time_ns()}-{os.getpid()}").touch()
        return {"kept_tokens": count, "total": method().value(x).sum(), "share": np.float64(count / 64),
                "workers": torch.get_num_threads(), "run_s": time.perf_counter() - start}


@dataclass(frozen=True)
class Picky(Sums):
    """Fails for one seed."""
    name: ClassVar[str] = "picky"

    def run(self, method, budget, seed):
        if seed == 1:
            raise ArithmeticError("seed 1 is unlucky")
        return super().run(method, budget, seed)


ALL = [Square, Root]
WORKLOADS = {"sums": Sums(), "picky": Picky()}
