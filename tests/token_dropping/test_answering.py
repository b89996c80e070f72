"""Answers from kept tokens: the batched ways against one scene and one word at a time."""
import pytest
import torch

from frugal.data.scenes import images_of, make_scene, questions
from frugal.models.mini_vlm import random_vlm
from frugal.token_dropping.answering import captions, one_words, some
from frugal.token_dropping.baselines import SpatialPool
from frugal.token_dropping.fastv import FastV
from frugal.token_dropping.hired import HiRED, HiREDReleased
from frugal.token_dropping.keeping import keep

METHODS = [(None, 1.0), (HiRED(), 0.2), (SpatialPool(), 0.1), (FastV(after=1), 0.7)]
ids = {"ids": lambda m: "full" if m is None else getattr(m, "name", m)}


@pytest.fixture(scope="module")
def vlm():
    return random_vlm()


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in range(3)]


def greedy(vlm, tokens, prompt, method, budget, steps):
    """One scene, one token at a time, everything in one pass for each new token."""
    ids = vlm.vocab.encode(prompt)
    for _ in range(steps):
        if method is not None and method.kind == "inside":
            _, logits = method.prefill(vlm, tokens, torch.tensor([ids]), budget)
        else:
            kept = keep(tokens, method, budget)
            embeds = torch.cat([kept.embeds, vlm.lm.weights["embed"][torch.tensor([ids])]], 1)
            places = torch.cat([kept.index, 320 + torch.arange(len(ids))[None]], 1)
            logits = vlm.lm.run(None, embeds=embeds, positions=places, last_only=True).logits[:, -1]
        ids.append(int(logits[0].argmax()))
    return [vlm.vocab.token_str(i) for i in ids[-steps:]]


@pytest.mark.parametrize("method, budget", METHODS, **ids)
def test_first_words_against_one_at_a_time(vlm, scenes, method, budget):
    tokens = vlm.see(images_of(scenes))
    asked = [[questions(scene, seed, 1)[0].prompt for scene in scenes] for seed in (4, 5)]
    asked[0][1] = "describe :"                                   # prompts of different lengths in one batch
    found = one_words(vlm, tokens, asked, method, budget)
    for j in range(2):
        for b in range(3):
            assert found[j][b] == greedy(vlm, some(tokens, [b]), asked[j][b], method, budget, 1)[0]


@pytest.mark.parametrize("method, budget", METHODS[:3], **ids)
def test_captions_against_one_at_a_time(vlm, scenes, method, budget):
    tokens = vlm.see(images_of(scenes))
    for b, said in enumerate(captions(vlm, tokens, method, budget)):
        words = greedy(vlm, some(tokens, [b]), "describe :", method, budget, 8)
        assert said == (words[:words.index("<end>")] if "<end>" in words else words)


def test_captions_end_at_the_end_token(vlm, scenes):
    ended = random_vlm(seed=1)
    ended.lm.weights["embed"][0] += 40 * ended.lm.weights["embed"].std() # the tied head now prefers or shuns the end
    said = captions(ended, ended.see(images_of(scenes)))
    assert all("<end>" not in words and len(words) <= 8 for words in said)


def test_some_takes_the_same_scenes_everywhere(vlm, scenes):
    tokens = vlm.see(images_of(scenes))
    part, alone = some(tokens, [2, 0]), vlm.see(images_of([scenes[2]]))
    assert torch.allclose(part.embeds[0], alone.embeds[0], atol=1e-5)
    assert torch.equal(part.features.cls_attn[1], tokens.features.cls_attn[0])
    assert torch.allclose(part.features.keys[0], alone.features.keys[0], atol=1e-5)


def test_the_release_runs_one_scene_at_a_time(vlm, scenes):
    one = some(vlm.see(images_of(scenes)), [1])
    assert keep(one, HiREDReleased(), 0.2).embeds.shape[1] <= 64 and len(captions(vlm, one, HiREDReleased(), 0.2)) == 1
