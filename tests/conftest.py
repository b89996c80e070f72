"""What every test shares: fixed threads and seeds, and the real model loaded once a run."""
import os
import random

import numpy as np
import pytest
import torch

NUM_THREADS = int(os.environ.get("FRUGAL_TEST_THREADS", "2"))


@pytest.fixture(autouse=True)
def same_start():
    """Each test starts from the same seeds and thread count, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in float32. Where it cannot be had: a failure in CI, a skip elsewhere."""
    from frugal.core.checkpoints import load_lm
    from frugal.core.fetch import FetchError
    try:
        return load_lm("smollm2-135m", progress=False)
    except FetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
