"""What the SETRec recipes share: the training sessions (drawn once, kept in the user cache) and batches of them."""
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from frugal.core.fetch import cache_dir
from frugal.data.emoji_sessions import NONE, make_sessions

NUM_SESSIONS, LENGTH = 20_000, 13                # sessions; items of a window: 12 read, the last one only found


def training_items() -> Int[Tensor, "u 20"]:
    """The training sessions, NONE after their ends."""
    path = cache_dir() / "training" / f"setrec_sessions_{NUM_SESSIONS}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"items": torch.from_numpy(make_sessions("train", NUM_SESSIONS).items)}, path)
    return load_file(path)["items"]


def windows(items: Int[Tensor, "u t"], count: int, generator: torch.Generator) -> Int[Tensor, "b 13"]:
    """`count` windows of 13 items from random sessions, at a random start where a session is longer."""
    rows = items[torch.randint(len(items), (count,), generator=generator)]
    slack = ((rows != NONE).sum(1) - LENGTH).clamp(min=0)
    start = (torch.rand(count, generator=generator) * (slack + 1)).long()
    return rows.gather(1, start[:, None] + torch.arange(LENGTH))
