"""Train SETRec or one of what it is compared with on the emoji sessions: python recipes/train_setrec.py --variant sem4 --work DIR --publish

Variants: sem0, sem1, sem2, sem4, sem8 (semantic tokens an item; sem4 is the one that pages show), inside (as sem4, tokens of one item
see each other), tiger (residual-quantized code sequences) and single (one learned token an item). All see the same 64 x
--steps windows of sessions; SETRec asks at four prefixes of each, the others at all twelve. About 2.5 CPU minutes for sem4.
Weights of a variant that no page needs are kept in the user cache (--keep), for recipes/record_setrec.py.
"""
import random

import torch
from torch import nn
from training import Plan, fit, halved, options, publish

from frugal.core.fetch import cache_dir
from frugal.data.emoji_sessions import catalogue, make_sessions
from frugal.models import load_weights, save_weights
from frugal.visual_tokenizers.setrec import SETRec, SetShape
from frugal.visual_tokenizers.setrec_measure import choose_beta, recall_rows
from frugal.visual_tokenizers.setrec_sequence import SequenceIds, SingleIds, item_codes
from setrec_data import training_items, windows

BATCH, PREFIXES = 64, 4
GATES = {"recall_all": 0.20}                     # co-picking neighbours of the history, without any training: 0.196
KEPT = cache_dir() / "training" / "setrec_variants"


def make(variant: str) -> nn.Module:
    """An untrained model of that variant. Raises ValueError for an unknown one."""
    items, _ = load_weights("setrec_items")
    if variant == "tiger":
        return SequenceIds(item_codes(items["text"], torch.from_numpy(catalogue().cold)))
    if variant == "single":
        return SingleIds(len(items["cf"]))
    if variant == "inside":
        return SETRec(items["cf"], items["text"], SetShape(full_attention=True))
    if variant.startswith("sem") and variant[3:].isdigit():
        return SETRec(items["cf"], items["text"], SetShape(n_sem=int(variant[3:])))
    raise ValueError(f"variant must be sem<number>, inside, tiger or single, got {variant!r}")


def loss_of(items, warm):
    """What `fit` calls: the loss on the windows of a step."""
    def loss(model, step, generator):
        batch = windows(items, BATCH, generator)
        if isinstance(model, SETRec):
            prefixes = sorted(random.Random(step).sample(range(4, 13), PREFIXES))
            return model.loss(batch, prefixes, warm)
        return model.loss(batch, warm)
    return loss


def metrics(model: nn.Module, users: int) -> dict[str, float]:
    """Recall@10 and NDCG@10 on test users; SETRec's beta is chosen on validation users."""
    found = {"beta": choose_beta(model, make_sessions("validation", 1_000))} if isinstance(model, SETRec) else {}
    rows = recall_rows(model, make_sessions("test", users), **found)
    return found | {name: round(float(column.mean()), 4) for name, column in rows.items()}


if __name__ == "__main__":
    parser = options(__doc__, steps=900)
    parser.add_argument("--variant", default="sem4")
    parser.add_argument("--keep", action="store_true", help="keep the weights in the user cache")
    args = parser.parse_args()
    torch.manual_seed(0)
    model, warm = make(args.variant), torch.from_numpy((~catalogue().cold).nonzero()[0])
    check_users = make_sessions("test", 400)
    done = fit(model, loss_of(training_items(), warm), args.work, Plan(args.steps),
               lambda m: {n: float(c.mean()) for n, c in recall_rows(m, check_users).items()})
    card = {"recipe": f"recipes/train_setrec.py --variant {args.variant} --steps {args.steps}", "seed": 0, "cpu_s": round(done["cpu_s"]),
            "data_hash": load_weights("setrec_items")[1]["data_hash"], "variant": args.variant, "metrics": metrics(halved(model), 2_000)}
    print(card, flush=True)
    if args.keep or args.publish:
        save_weights(args.variant, model.state_dict(), card, KEPT)
    if args.publish:
        publish({"sem4": "setrec", "tiger": "setrec_tiger"}[args.variant], model, card, GATES if args.variant == "sem4" else None, args.force)
