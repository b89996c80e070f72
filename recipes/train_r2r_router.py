"""Label problems with the R2R pair, train the token router on them, and choose its threshold on problems it has not seen.

    python recipes/train_r2r_router.py --publish

One thread. Steps 0 to 4 of the paper: the large model's answers, the small model's proposals, the large model's continuations, the
verdicts, the training set. Labels are kept in the user cache (safetensors) part by part, so a killed run goes on where it stopped.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from frugal.core.fetch import cache_dir
from frugal.data import arithmetic_chains as chains
from frugal.early_exit.r2r_labels import DIVERGENT, KINDS, Labelled, label_answers
from frugal.early_exit.r2r_router import RECALL, choose_threshold, fit, rates, scores_of
from frugal.models import load_card, save_weights
from frugal.models.r2r_pair import load_pair

PART = 1000                                        # problems labelled and stored at a time
TRAIN_SEED, HELD_OUT_SEED, NUM_HELD_OUT = 20_001, 20_002, 1000


def packed(labelled: list[Labelled]) -> dict[str, torch.Tensor]:
    """Labels as flat int16 tensors."""
    flat = {name: torch.tensor(np.concatenate([getattr(one, name) for one in labelled])).to(torch.int16)
            for name in ("text", "proposed", "kind")}
    return flat | {"num_text": torch.tensor([len(one.text) for one in labelled]),
                   "num_prompt": torch.tensor([one.num_prompt for one in labelled])}


def unpacked(found: dict[str, torch.Tensor]) -> list[Labelled]:
    """The inverse of `packed`."""
    out, text, answer = [], 0, 0
    for size, prompt in zip(found["num_text"].tolist(), found["num_prompt"].tolist()):
        behind = answer + size - prompt
        out.append(Labelled(found["text"][text:text + size].tolist(), prompt, found["proposed"][answer:behind].tolist(),
                            found["kind"][answer:behind].tolist()))
        text, answer = text + size, behind
    return out


def label_set(pair, seed: int, count: int, folder: Path, mark: str) -> list[Labelled]:
    """Labels of `count` problems of a seed, stored in parts; `mark` names the pair, so that other weights start anew."""
    out, problems, started = [], chains.chains(seed, count), time.perf_counter()
    for first in range(0, count, PART):
        path = folder / f"{mark}-{seed}-{first}.safetensors"
        if not path.exists():
            save_file(packed(label_answers(*pair, problems[first:first + PART])), path)
        out += unpacked(load_file(path))
        kinds = np.bincount(np.concatenate([one.kind for one in out]), minlength=3)
        print(json.dumps({"labelled": len(out), "wall_s": round(time.perf_counter() - started),
                          **{name: round(n / kinds.sum(), 4) for name, n in zip(KINDS, kinds.tolist())}}), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--publish", action="store_true", help="write the router and its card into the package")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = cache_dir() / "training" / "r2r_labels"
    folder.mkdir(parents=True, exist_ok=True)
    pair = load_pair()
    mark = load_card("r2r_llm")["sha256"][:8] + load_card("r2r_slm")["sha256"][:8]
    held_out = label_set(pair, HELD_OUT_SEED, NUM_HELD_OUT, folder, mark)
    labelled = label_set(pair, TRAIN_SEED, options.problems, folder, mark)
    started = time.process_time()
    router = fit(pair[1], labelled, options.epochs, report=lambda line: print(json.dumps(line), flush=True))
    router = router.half().float()                                      # as it will be stored
    scores, divergent = scores_of(router, pair[1], held_out)
    threshold = choose_threshold(scores, divergent)
    recall, false = rates(scores, divergent, threshold)
    kinds = np.concatenate([one.kind for one in held_out])
    metrics = {"threshold": threshold, "recall": recall, "false_positive_rate": false, "routed_share": float((scores >= threshold).double().mean()),
               "divergent_share": float((kinds == DIVERGENT).mean()), "held_out_problems": NUM_HELD_OUT}
    print(json.dumps(metrics | {"parameters": router.num_parameters, "cpu_s": round(time.process_time() - started)}), flush=True)
    if recall < RECALL:
        raise SystemExit(f"recall {recall:.3f} is below {RECALL}: not published")
    if options.publish:
        save_weights("r2r_router", {name: value.detach() for name, value in router.state_dict().items()},
                     {"recipe": "recipes/train_r2r_router.py", "seed": 0, "problems": options.problems, "epochs": options.epochs,
                      "shape": router.shape, "threshold": threshold, "pair": mark, "data_hash": chains.data_hash(), "metrics": metrics})


if __name__ == "__main__":
    main()
