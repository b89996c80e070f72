"""Train EmojiNet, the feature network of all picture distances: subgroup, group, and which picture it is (InfoNCE).

    python recipes/train_emoji_net.py --work ~/.cache/frugal/training/emoji_net --publish

One thread, about 4 CPU minutes; stops and resumes anywhere. Held-out concepts are never seen. At the end features are shifted and
scaled so that over all emoji their mean is 0 and their mean variance 1 (the classifiers make up for it). Every published number of
the family depends on these weights: train anew only if you mean to record everything anew.
"""
import torch
import torch.nn.functional as F

from frugal.data.emoji import PIXELS_SHA256
from frugal.data.emoji_images import augment, load_images
from frugal.models.emoji_net import SHAPE, EmojiNet
from training import Plan, fit, halved, options, publish

BATCH, TEMPERATURE = 96, 0.1
GATES = {"subgroup_train": 0.90, "group_held_out": 0.60, "subgroup_held_out": 0.40, "found_first_held_out": 0.90}


def loss(net: EmojiNet, step: int, generator: torch.Generator):
    """Cross entropy of subgroups and groups over two augmented views, plus half of their InfoNCE."""
    images, train = load_images(), load_images().train()
    places = train[torch.randperm(len(train), generator=generator)[:BATCH]]
    views = torch.cat([augment(images.pixels[places], generator, shift=3) for _ in range(2)])
    features = net.features(views)
    groups, subgroups = net.logits(F.dropout(features, 0.2))
    ce = [F.cross_entropy(logits.float(), labels[places].repeat(2), label_smoothing=0.05)
          for logits, labels in ((groups, images.groups), (subgroups, images.subgroups))]
    unit = F.normalize(features.float(), dim=-1)
    apart = unit @ unit.T / TEMPERATURE - 1e9 * torch.eye(len(unit))
    other = torch.arange(len(unit)).roll(BATCH)
    contrast = F.cross_entropy(apart, other)
    return ce[0] + ce[1] + 0.5 * contrast, {"group": ce[0].detach(), "subgroup": ce[1].detach(), "contrast": contrast.detach()}


@torch.no_grad()
def check(net: EmojiNet) -> dict[str, float]:
    """Accuracy on both splits; how often the nearest of all pictures to an augmented one is its original, and its mean rank."""
    images = load_images()
    features = net.features(images.pixels)
    groups, subgroups = (logits.argmax(-1) for logits in net.logits(features))
    found = {}
    for split, places in (("train", images.train()), ("held_out", images.held_out_set())):
        views = augment(images.pixels[places], torch.Generator().manual_seed(7), shift=2)
        distances = torch.cdist(net.features(views), features)
        rank = (distances < distances.gather(1, places[:, None])).sum(1)
        found |= {f"group_{split}": (groups == images.groups)[places].float().mean(),
                  f"subgroup_{split}": (subgroups == images.subgroups)[places].float().mean(),
                  f"found_first_{split}": (rank == 0).float().mean(), f"rank_{split}": rank.float().mean() + 1}
    return {name: round(float(value), 4) for name, value in found.items()}


@torch.no_grad()
def standardize(net: EmojiNet) -> EmojiNet:
    """Shifts and scales the features as the module says; logits stay as they were."""
    features = net.features(load_images().pixels)
    mean, scale = features.mean(0), features.var(0).mean().sqrt()
    for head in (net.to_groups, net.to_subgroups):
        head.bias += head.weight @ mean
        head.weight *= scale
    net.to_features.bias -= mean
    net.to_features.weight /= scale
    net.to_features.bias /= scale
    return net


def main() -> None:
    given = options(__doc__, steps=1800).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = EmojiNet(**SHAPE)
    plan = Plan(steps=given.steps, adam=3e-3, decay=0.1, ema=0.99)
    state = fit(net, loss, given.work, plan, check)
    net = halved(standardize(net))
    metrics = check(net)
    print(metrics)
    if given.publish:
        publish("emoji_net", net, {"recipe": "recipes/train_emoji_net.py", "seed": plan.seed, "steps": state["step"], "shape": SHAPE,
                                   "cpu_s": round(state["cpu_s"]), "data_hash": PIXELS_SHA256[32], "metrics": metrics}, GATES, given.force)


if __name__ == "__main__":
    main()
