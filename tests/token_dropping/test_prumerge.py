"""PruMerge against a loop, at a view's scale and with all views; PruMerge+ and its even sample."""
import math

import pytest
import torch

from frugal.token_dropping.keeping import keep
from frugal.token_dropping.prumerge import EXTRA, PruMerge, PruMergePlus, merge_into, merged_head_attention, outlier_ratio
from tests.token_dropping.toys import random_tokens


def loop_merge(embeds, keys, attn, kept, neighbours):
    """One view, token by token, as the release does it; kept is a list of places in raster order."""
    size, merged = len(embeds), []
    for i in kept:
        cosine = [-math.inf if j == i else float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in range(size)]
        near = sorted(range(size), key=lambda j: -cosine[j])[:neighbours]
        merged.append(embeds[i] + sum(attn[j] * embeds[j] for j in near))
    merged.append(sum(attn[j] * embeds[j] for j in range(size) if j not in kept))
    return torch.stack(merged)


@pytest.mark.parametrize("cls", [PruMerge, PruMergePlus], ids=lambda c: c.name)
@pytest.mark.parametrize("budget", [16, 64, 128])
def test_merging_against_a_loop(cls, budget):
    tokens = random_tokens(5)
    kept, attn = keep(tokens, cls(), budget), merged_head_attention(tokens.features)
    for scene in range(2):
        at = 0
        for view in range(5):
            count = budget // 5 + (view < budget % 5)
            own = (kept.index[scene, at:at + count - 1] - 64 * view).tolist()
            assert own == sorted(own) and kept.index[scene, at + count - 1] == EXTRA
            expected = loop_merge(tokens.embeds[scene, 64 * view:64 * view + 64], tokens.features.keys[scene, view],
                                  attn[scene, view], own, 8)
            assert torch.allclose(kept.embeds[scene, at:at + count], expected, atol=1e-5)
            at += count


def test_the_kept_ones_are_those_with_most_attention():
    tokens = random_tokens(6)
    attn = merged_head_attention(tokens.features)
    q, k = tokens.features.cls_query[0, 1], tokens.features.keys[0, 1]
    assert torch.allclose(attn[0, 1], torch.stack([q @ k[j] for j in range(64)]).div(12 ** 0.5).softmax(-1), atol=1e-6)
    chosen = PruMerge().choose(attn[:, 1], 12)
    assert chosen.sum(1).tolist() == [12, 12]
    assert attn[0, 1][chosen[0]].min() > attn[0, 1][~chosen[0]].max()


def test_plus_takes_a_quarter_by_attention_and_the_rest_evenly():
    attn = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    plain, plus = PruMerge().choose(attn, 16)[0], PruMergePlus().choose(attn, 16)[0]
    best = set(attn[0].topk(4).indices.tolist())
    assert best <= set(plus.nonzero()[:, 0].tolist()) and plus.sum() == plain.sum() == 16
    places = [p for p in plus.nonzero()[:, 0].tolist() if p not in best]
    gaps = [b - a for a, b in zip(places, places[1:])]
    assert len(places) == 12 and max(gaps) <= 7 and min(gaps) >= 5                       # 60 others in 12 steps of 5


def test_a_token_is_not_its_own_neighbour_and_weights_are_not_normalised():
    embeds, keys = torch.eye(4)[None], torch.tensor([[[1.0, 0], [1, 0.1], [0, 1], [-1, 0]]])
    attn = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    merged = merge_into(embeds, keys, attn, torch.tensor([[True, False, False, False]]), 1)
    assert torch.allclose(merged[0], torch.tensor([[1, 0.3, 0, 0], [0, 0.3, 0.2, 0.1]]))


class Normalised(PruMerge):
    """The planted mistake: a kept token becomes the weighted mean of its neighbours."""
    def merge(self, tokens, budget):
        kept = super().merge(tokens, budget)
        return type(kept)(kept.embeds / (1 + kept.embeds.norm(dim=-1, keepdim=True)), kept.index)


def test_a_wrong_merge_is_rejected():
    tokens = random_tokens(5)
    attn, kept = merged_head_attention(tokens.features), keep(tokens, Normalised(), 64)
    own = (kept.index[0, :12]).tolist()
    expected = loop_merge(tokens.embeds[0, :64], tokens.features.keys[0, 0], attn[0, 0], own, 8)
    assert not torch.allclose(kept.embeds[0, :13], expected, atol=1e-2)


def test_outlier_ratio_counts_the_upper_outliers():
    attn = torch.full((1, 2, 64), 0.01) + torch.linspace(0, 1e-3, 64)
    attn[:, :, :4] = 0.2
    assert outlier_ratio(attn) == pytest.approx(4 / 64)
