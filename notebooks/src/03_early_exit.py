# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Early exit: how many layers does a token need?
#
# ## Promise
#
# After this section you will know what three papers promise and how we judge them.
#
# A language model runs all of its layers for every token, for a comma as for a conclusion. SkipDecode lets later tokens of
# a text run fewer layers, the same for a whole batch. Duo-LLM asks how well a token could be served at best, and finds that
# learned routers are far from it. R2R lets a small model write and calls a large one only where the meaning would change.
#
# All run here for real: layers that are skipped are not executed, caches hold what was written, and the output matrix is
# charged. The first half uses SmolLM2-135M as it is, where early exit does *not* pay, and shows why. The second half uses
# small models trained for the purpose. The notebook takes about two minutes on a laptop and needs no network.

# %%
import frugal
from frugal.core.depth_decode import FullDepth, decode
from frugal.core.roofline import shape
from frugal.early_exit import ConfidenceExit, SelfSpeculative, SkipDecode, figures, live_lens
from frugal.early_exit import exercises as ex
from frugal.early_exit.lenses import load_ridge_lens
from frugal.early_exit.workloads import model, window
from frugal.explore import live, show_source, text

SCALE = "small"
lm = model("smollm2-135m")

# %%
ledger = frugal.claims("early_exit", progress=False)
print(ledger.groupby(["paper", "verdict"], sort=False).size().to_string())

# %% [markdown]
# ## Picture
#
# After this section you will tell the ways of saving layers apart by their shape.
#
# Columns are positions, rows are layers. The first eight tokens are the prompt. A blue cell was run; an orange one only got
# keys and values, copied from a token that had left; a purple one was run later, when a deeper token needed it.
#
# **Guess first:** which shape can be run as a batch without anyone waiting?

# %%
depth_grid = figures.depth_grid()
depth_grid

# %%
print("figure digest", depth_grid.digest)

# %% [markdown]
# <details><summary>Answer</summary>
#
# The wedge and the flat ones. SkipDecode's depth depends on the position alone, so all sequences of a batch take the same
# step, and because it never rises, a late token finds keys in every layer that it runs. Confident exit is ragged: each token
# has a depth of its own, a batch runs to its deepest token, and the cells above need keys from somewhere.
#
# </details>
#
# ## Equation
#
# After this section you will be able to say which cells may be left out.
#
# Let $A_j$ be the layers that position $j$ runs (`PlannedDepth.layers`). At each of them it reads the keys of all earlier
# positions, so nothing is missing exactly when
#
# $$A_j \subseteq A_i \quad\text{for all } i < j .$$
#
# SkipDecode runs $A_j = \{0,\dots,m-1\} \cup \{L-N_j+m,\dots,L-1\}$ with a depth $N_j$ that never rises, $m$ warm-up layers and $L$
# layers in all. A cache made with `strict=True` checks the rule at every step and raises `MissingKeys` where it is broken.

# %% [markdown]
# ## The code
#
# After this section you will have read how a depth is planned, and how a model checks its own draft.

# %%
show_source(SkipDecode.layers)

# %%
show_source(SelfSpeculative._round)

# %% tags=["nbval-ignore-output", "reason: generated tokens can differ between machines"]
prompt = list(window("smollm2-135m", 0, 24))
run = decode(lm, [prompt], ConfidenceExit(0.9, lens=load_ridge_lens()), 12)
print("layers after which each token left:", [depth for depth, in run.memory["depths"]])
print(f"{run.mean_layers:.1f} layers a token and {run.work.head_calls / len(run.step_work):.1f} readings of the output matrix")

# %% [markdown]
# ## Try it
#
# After this section you will have seen where in the stack a word appears.
#
# Type a sentence of at most 40 tokens. Each cell is what that depth would say after the token below it; the red
# frame is the depth from which the word no longer changes. Depths from 21 on are read through a ridge lens (below), the others
# through the model's own head. A run takes about a second.

# %%
lens_table = live(live_lens.lens_table, live_lens.lens_picture, recorded=live_lens.recorded_table(),
                  sentence=text("Sentence", live_lens.SENTENCE, max_chars=300), lens=list(live_lens.LENSES))
lens_table

# %%
print("figure digest", lens_table.digest)

# %% [markdown]
# ## Measure
#
# After this section you will know what can be read at which depth, and what reading it costs.
#
# The *logit lens* hands a middle state to the model's own head. The *ridge lens* first applies one affine map, fitted in
# closed form on 50,000 tokens. Both are judged on pages that were left out of the fit.

# %%
lens_layers = figures.lens_layers()
lens_layers

# %%
print("figure digest", lens_layers.digest)

# %% [markdown]
# Below layer 18 or so even the fitted lens finds three words in ten; then each layer adds some. Look at "right when
# confident" next: the ridge lens is nearly always right where it is sure, from layer 21 on, but it is sure of one token in ten
# there and of one in five at layer 28. The plain logit lens is sure of a third of the tokens and mostly wrong.
# So a rule can be *accurate* and still save little. And asking the head once costs as much as eight layers:

# %%
body, head = shape("SmolLM2-135M").layer_params, lm.head.numel()
print(f"a layer has {body / 1e6:.1f} million weights, the output matrix {head / 1e6:.1f} million: {head / body:.1f} layers")

# %%
head_charged = figures.head_charged()
head_charged

# %% [markdown]
# The first bar is what a paper's figure would show: layers that the token needed. The second charges every reading of the
# output matrix, the third is measured. Where the rule is strict enough to keep the text, it is asked five times a token and
# costs twice the whole model. Saturation compares states and needs no head, but on this model it does not know when to stop.
#
# And a batch runs to its deepest token:

# %%
batch_wait = figures.batch_wait()
batch_wait

# %%
print("figure digests", head_charged.digest, batch_wait.digest)

# %% [markdown]
# Other ways to spend fewer layers on the same model, without training. Move the axis between layers, bytes and time:

# %%
exits_curve = figures.exits_curve()
exits_curve

# %%
bridge_jumps = figures.bridge_jumps()
bridge_jumps

# %% [markdown]
# When all positions jump, a map in the gap lifts agreement from nothing to a half at best: one position's state cannot replace the
# attention of the layers between. SkipDecode does better with the same maps, because its prompt ran every layer.
#
# Drafting with the first layers is the one method here that never changes the text: what does not hold is written again. It
# loses on SmolLM2. Switch to the mini-LM, which was trained with random depths: two of its twelve layers draft well enough to read
# fewer weights. That pays where reading weights is what takes the time. It is counted here, not timed: a call of a model this small
# costs nearly the same whatever it reads, and drafting makes more calls.

# %%
drafting = figures.drafting()
drafting

# %%
print("figure digests", exits_curve.digest, bridge_jumps.digest, drafting.digest)

# %% [markdown]
# ## SkipDecode: a depth for each position
#
# After this section you will know what a model gains that was trained to skip.
#
# The mini-LM has 12 layers and 5 million weights. It was trained on Python code with random depths, so that it knows the jump.
# Its schedule falls along the text on a line; the mean is the number of layers divided by the target speed-up.
#
# **Guess first:** at a target of 2, which loses less: skipping the middle, or leaving at the top on the same schedule?

# %%
skip_quality = figures.FIGURES["skip_quality"]()
skip_quality

# %% [markdown]
# Leaving at the top loses three times as much. But a fixed block left out in the middle, or one depth for all positions, does as
# well as the falling depth up to 4x: what helps here is *which* layers run. Switch to SmolLM2, which was never trained for it: a plain
# jump breaks it, and a map in the gap keeps it standing for a while.
#
# Now the speed, as measured, with confident exit beside it. Move the batch.

# %%
skip_batches = figures.FIGURES["skip_batches"]()
skip_batches

# %%
skip_steps = figures.FIGURES["skip_steps"]()
skip_steps

# %%
print("figure digests", skip_quality.digest, skip_batches.digest, skip_steps.digest)

# %% [markdown]
# SkipDecode is 1.6 to 1.9 times as fast at a target of 2, at every batch. Confident exit is slower than the whole model: each candidate
# reads a head, and a batch waits for its deepest sequence. A step gets cheaper along the text, though never by the full factor:
# embedding, head and the loop's own work stay.
#
# ## Duo-LLM: how good could routing be?
#
# After this section you will know why an oracle's gain is not all there to be had.
#
# Every layer of this small model has a big and a small feed-forward network. With six layers there are 64 patterns, so the
# best one for each token can be found by trying all. The oracle has seen the answer; the control asks how much of its gain is
# luck, by taking the best of as many runs of the *whole* model that differ only by dropout.

# %%
duo_curve = figures.FIGURES["duo_curve"]()
duo_curve

# %% [markdown]
# The oracle's best budget is in the middle, where there are most patterns to choose from. But the control does better still: taking
# the least of many noisy losses is worth more than anything the patterns do. And the trained router, which has no answer to look
# at, stays near random routing.
#
# *Difficulty* is what the best pattern saves over the cheapest one. It is not the loss:

# %%
duo_strip = figures.FIGURES["duo_strip"]()
duo_strip

# %% [markdown]
# Switch the colour to the loss. The first piece of a new name is hopeless: bright in loss, dark in difficulty. The rest of a
# name seen before is difficult: a big network finds it.

# %%
duo_picks = figures.FIGURES["duo_picks"]()
duo_picks

# %%
duo_speed = figures.FIGURES["duo_speed"]()
duo_speed

# %%
print("figure digests", duo_curve.digest, duo_strip.digest, duo_picks.digest, duo_speed.digest)

# %% [markdown]
# Tokens are really gathered by their choice, computed together and scattered back (`apply_chosen`).
#
# ## R2R: two models, one text
#
# After this section you will know which tokens a large model is needed for.
#
# A language of arithmetic chains, in which it can be decided whether two sentences mean the same. The small model gets half of the
# problems right, the large one nearly all. One problem by two hands: grey tokens are the small model's, blue ones the large one's.
# Under a replaced token stands the sentence that the small model would have written.
#
# **Guess first:** what share of the tokens must the large model write to be right as often as alone?

# %%
r2r_hands = figures.FIGURES["r2r_hands"]()
r2r_hands

# %% [markdown]
# Move the threshold up, and the small model writes alone and is wrong; move it down, and there are more calls for the same answer.
#
# Most of the small model's tokens are *identical* to the large one's. Most of the others are *neutral*: other words, same meaning.
# Asking at every difference would waste six calls of seven.

# %%
r2r_labels = figures.FIGURES["r2r_labels"]()
r2r_labels

# %%
r2r_front = figures.FIGURES["r2r_front"]()
r2r_front

# %% [markdown]
# The router sees only the small model's state. Entropy asks at words of style, which are many and harmless. Switch the cost to FLOPs and
# the gain shrinks, because the large model later reads every token it skipped: what R2R saves is passes over the weights.

# %%
r2r_speed = figures.FIGURES["r2r_speed"]()
r2r_speed

# %%
print("figure digests", r2r_hands.digest, r2r_labels.digest, r2r_front.digest, r2r_speed.digest)

# %% [markdown]
# With models this small a call costs the same whatever its size, so routing loses time here.
#
# The paper's own number checks itself: 1.5 billion parameters at every token and 32 billion at a share $f$ of them make 5.6 billion.

# %%
print(f"f = {(5.6 - 1.5) / 32:.1%} of the tokens come from the large model")

# %% [markdown]
# ## Claim check
#
# After this section you will know which numbers hold.

# %%
columns = ["paper", "quote", "value", "unit", "measured", "projected", "verdict"]
ledger[columns].style.hide(axis="index").format(precision=3, na_rep="")

# %%
print(ledger[["key", "value", "unit", "how", "verdict"]].to_string(index=False))

# %% [markdown]
# ## Compare
#
# After this section you will be able to choose.
#
# | you have | take | because |
# |---|---|---|
# | a finished model with a large vocabulary | nothing, or drafting with a small model of its own | each question to the head costs layers, and the middle cannot be read |
# | one sequence, a large model trained to exit | self-speculative drafting | the text never changes, and fewer weights are read |
# | large batches, a model you may train | SkipDecode, or a fixed middle left out | one depth for the batch: nobody waits, no key is missing |
# | a small and a large model of one family | R2R | the small one is right almost everywhere, and the rest can be predicted |
# | a question about what is possible at all | an oracle, with its control | the oracle sees the answer; a router does not |

# %% [markdown]
# ## Exercises
#
# Each check names the likely mistake. Hints are folded.

# %%
ex.find_missing_key

# %%
def find_missing_key(sets: list[list[int]]) -> tuple[int, ...]:
    raise NotImplementedError  # yours

ex.find_missing_key.check(find_missing_key)

# %%
ex.charged_layers

# %%
def cost_in_layers(exits: tuple, left_after: int, num_layers: int, head: float) -> float:
    raise NotImplementedError  # yours

ex.charged_layers.check(cost_in_layers)

# %%
ex.accepted_tokens

# %%
def tokens_that_hold(drafts: list[int], wanted: list[int]) -> list[int]:
    raise NotImplementedError  # yours

ex.accepted_tokens.check(tokens_that_hold)

# %%
ex.best_pattern

# %%
def best_pattern(table, budget):
    raise NotImplementedError  # yours: a list with one pattern a token

ex.best_pattern.check(best_pattern)

# %%
ex.recall_threshold

# %%
import numpy as np


def threshold(scores, divergent, recall=0.95):
    raise NotImplementedError  # yours: a number in 0..1

ex.recall_threshold.check(threshold)

# %% [markdown]
# ## Limits
#
# - SmolLM2 spends a fifth of its weights on the output matrix. A model with 70 billion parameters spends one hundredth, and a
#   check at every layer is nearly free there. That exits do not pay *here* is no verdict on them there.
# - The mini-LM saw 2.5 million tokens and makes little use of its depth: three of its twelve layers lose 0.14 nats. "Little is lost"
#   comes easier here than on a large model.
# - The lenses are linear and fitted on 50,000 tokens. A trained exit head would read a little more, a trained model much more.
# - CPU time was measured with one thread; its ratios differ from machine to machine, counted bytes do not.
#
# ## References
#
# SkipDecode arXiv 2307.02628; Duo-LLM arXiv 2410.10846; R2R arXiv 2505.21600. Baselines: CALM 2207.07061; LayerSkip 2404.16710;
# Unified Layer Skipping 2404.06954; Tuned Lens 2303.08112; linear short cuts 2303.09435.

# %% [markdown] tags=["discussion"]
# ## For the reading group
#
# 1. A paper reports that tokens leave after 60 % of the layers on average. What do you ask before you believe in a speed-up?
#    <details><summary>An answer</summary>How often the output matrix was read to decide it, how large that matrix is beside a
#    layer, where the missing keys came from, and the batch size: a batch runs to its deepest token.</details>
# 2. Why may depth fall along a text but not rise?
#    <details><summary>An answer</summary>A token reads the keys of all earlier tokens at each layer it runs. If it runs a layer
#    that an earlier one skipped, that key was never written, and an unguarded cache says nothing.</details>
# 3. State copying fills the missing keys from the state a token left with. When is that harmless?
#    <details><summary>An answer</summary>When the skipped layers would have changed the state little: a residual stream that
#    has settled. It is an approximation all the same; running the layers later is exact and reads each weight once.</details>
# 4. Why can self-speculative decoding promise the same text while confident exit cannot?
#    <details><summary>An answer</summary>Every token is read by the whole model before it counts. The draft decides only how
#    many tokens one such reading yields.</details>
# 5. An oracle that picks the best path of a token beats the model that uses all of its modules. Is the model too big?
#    <details><summary>An answer</summary>Not shown yet: the oracle takes the least of many noisy losses after seeing the answer.
#    Compare with the least of as many random perturbations of the whole model.</details>

# %% [markdown] tags=["summary"]
# - A token's cost is its layers plus every reading of the output matrix. In SmolLM2 one reading costs eight layers.
# - Little can be read from SmolLM2's middle; a ridge lens reads most words from layer 24 on, and is nearly always right where it
#   is sure. That saves a few of thirty layers for some tokens, and the questions cost more.
# - Keys go missing when a later token runs a layer that an earlier one skipped. Planned depths that never rise avoid it; confident
#   exit copies states or runs the layers later. A strict cache raises instead of reading what nobody wrote.
# - A batch runs to its deepest token, unless depth depends on the position alone (SkipDecode).
# - Drafting with the first layers keeps the text as it is. It reads fewer weights in a model trained with random depths, not in SmolLM2.
# - Duo-LLM: an oracle over all patterns of big and small networks beats the all-big model, but so does the best of as many perturbed
#   runs of the big model. Choosing among many noisy losses after the fact explains the gain here.
# - R2R: a small model writes; a router, trained on which differences change the meaning, calls the large one for a few tokens.
