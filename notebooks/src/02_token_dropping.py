# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Visual tokens: which parts of a picture must a model read?
#
# ## Promise
#
# After this section you will know what three papers promise and how we judge them.
#
# A vision-language model cuts a picture into views and turns each into tokens: 2,880 in LLaVA-Next. Most show
# background. HiRED drops them before the decoder reads any, by where the encoder itself looked. PAINT and VISTA save
# nothing; they make the decoder heed the tokens it has, so that it invents less.
#
# All run here for real, on a model small enough to train on a laptop: an encoder and a decoder of 1-2 million
# parameters that answer questions about emoji scenes, 320 visual tokens each. The generator knows every truth.
# The notebook takes about two minutes and needs no network.

# %%
import frugal
import pandas as pd
import torch
from frugal.data.scenes import HELD_OUT, THEMES, images_of, make_scene, questions
from frugal.explore import live, show_source
from frugal.models import load_card
from frugal.token_dropping import HiRED, SpatialPool, figures, live_scene, paint, vista, workloads
from frugal.token_dropping import exercises as ex
from frugal.token_dropping.answering import captions
from frugal.token_dropping.hired import allocate_budget
from frugal.token_dropping.keeping import keep, prefill

SCALE = "small"
vlm = workloads.model()           # frugal.models.mini_vlm.load_mini_vlm, loaded once a process

# %%
ledger = frugal.claims("token_dropping", progress=False)
print(ledger.groupby(["paper", "verdict"], sort=False).size().to_string())

# %% [markdown]
# ## Picture
#
# After this section you will have seen what HiRED keeps, and the two maps it goes by.
#
# A scene of 128 x 128 px gives five views of 64 x 64: an *overview* at half the resolution and four *tiles*. Each view
# has 8 x 8 tokens. Kept tokens are outlined, dropped ones fade. The first-layer map of the overview shares out the
# budget among the tiles; the last-layer maps pick the tokens.
#
# **Guess first:** at 10 % of the tokens, will the caption still name all objects? Which alpha would you choose?

# %%
keep_picture = figures.keep_picture()
keep_picture

# %%
print("figure digest", keep_picture.digest)

# %% [markdown]
# The scenes themselves: three to six of 104 emoji, mostly of one theme, 16 to 28 px, so an object covers a handful of
# tile tokens and one or two of the overview's.

# %%
scene_viewer = figures.scene_viewer()
scene_viewer

# %%
print("figure digest", scene_viewer.digest)

# %%
for theme, names in THEMES.items():
    print(f"{theme:8} {len(names):2}: {' '.join(names[:9])} ...")
scene = make_scene(HELD_OUT)
for question in questions(scene, seed=1, n=4):
    print(question.prompt, "->", question.answer)

# %% [markdown]
# Does the model use the picture at all? Its card says what was measured on held-out scenes: blind, with the overview alone,
# and with all views. `small` are objects up to 18 px; `chair_i` is the share of names in captions that are not there.

# %%
shown = ["existence", "place", "count", "small", "caption_recall", "chair_i"]
print(pd.DataFrame(load_card("mini_vlm")["metrics"]).loc[shown, ["blind", "overview", "full"]].round(2).to_string())

# %% [markdown]
# ## Equation
#
# After this section you will be able to share out a budget by hand.
#
# With $a^{(l)}_v$ the CLS attention of view $v$ in layer $l$, summed over heads (`cls_attention(features, l)`), and $K$
# tokens to keep of $N$:
#
# $$K_0 = \min(\lfloor \alpha K \rfloor, N_v), \qquad K_t \propto \sum_{j \in R_t} \mathbf 1\big[\,j \in \mathrm{top}_{\lfloor N_v (1-\alpha)\rfloor}(a^{(0)}_0)\big]$$
#
# $R_t$ is tile $t$'s region of the overview. The paper asks the overview's *first* layer, because in the last layer of a
# large encoder a few background tokens collect attention that has no place to go. Each view's own softmax sums to one,
# so attention of different views must not be compared: all tiles would come out equal.

# %% [markdown]
# ## The code
#
# After this section you will have read the whole policy. It decides; the core gathers and prefills.

# %%
show_source(HiRED.select)

# %%
show_source(allocate_budget)

# %%
tokens = vlm.see(images_of([scene]))
full, small = vlm.prefill(tokens.embeds), prefill(vlm, tokens, HiRED(), 0.2)
print(full.num_held(0).tolist(), "and", small.num_held(0).tolist(), "slots in layer 0")
print(f"{full.num_bytes:,} and {small.num_bytes:,} bytes of real storage")

# %%
print("in the scene: ", *scene.names)
for method, budget in [(None, 1.0), (HiRED(), 0.2), (SpatialPool(), 0.2)]:
    name = f"{method.name if method else 'full'}, {keep(tokens, method, budget).embeds.shape[1]} tokens:"
    print(f"{name:26}", *captions(vlm, tokens, method, budget)[0])

# %% [markdown]
# ## Try it
#
# After this section you will have asked about a scene of your own.
#
# Choose an object, its place and size, add others (one a line), and ask: *is there a fox ?*, *what is at top-left ?*,
# *how many fox ?* or *describe :*. The model answers with all tokens and with what the method keeps.

# %%
own_scene = live(live_scene.ask_twice, live_scene.two_answers, recorded=live_scene.recorded_answer(), **live_scene.inputs())
own_scene

# %%
print("figure digest", own_scene.digest)

# %% [markdown]
# ## Measure
#
# After this section you will know what each method loses at each budget, and on which question.
#
# A recorded sweep over 150 held-out scenes, the same questions for every method; intervals are bootstrapped over scenes.
# At each budget all methods hand the decoder the same number of tokens. FastV is the exception: it drops inside the
# decoder, after two of eight blocks have read everything, and has seen the question; its budget is equal FLOPs, and
# below 25 % it has none.

# %%
budget_curve = figures.budget_curve()
budget_curve

# %%
print("figure digest", budget_curve.digest)

# %% [markdown]
# Notice which question is asked. Whether something is there survives almost any selection: one token of an object will
# do. At 20 % of the tokens HiRED loses little on places and small objects, and most on counting, which needs every
# object. Pooling averages a small object into the ground; the overview alone never saw it well. PruMerge is close, and
# level on yes or no and on counting. At 5 % all fall, HiRED last.
#
# One row of this table, recomputed now on its first scenes:

# %%
row = workloads.Scenes(num_scenes=10).run(HiRED, 0.2, 0)
print(f"hired, 20 %: {row['held_tok']:.0f} tokens held; place {row['place']:.2f}, small {row['small']:.2f}, count {row['count']:.2f}")

# %% [markdown]
# What a scene costs the decoder, counted. The encoder sees all five views whatever is kept; switch it on to see what it
# leaves of the saving in a model this small.

# %%
cost_panel = figures.cost_panel()
cost_panel

# %%
print("figure digest", cost_panel.digest)

# %% [markdown]
# ### What the drop buys, in seconds
#
# The paper's own token counts as embeddings through SmolLM2-135M, a real decoder: 2,880 down to 288, with 60 others.

# %%
drop_buys = figures.drop_buys()
drop_buys

# %% [markdown]
# Prefill falls faster than the tokens, because attention grows with their square. A decoded token gains little: it
# reads the weights either way. So the paper's 4.7 is a short-answer figure: its benchmark writes at most 15 tokens, and
# the prefill is nearly all of the time. **Guess first:** what is left of it at 200 tokens?

# %%
answer_length = figures.answer_length()
answer_length

# %%
print("figure digests", drop_buys.digest, answer_length.digest)

# %% [markdown]
# ## PAINT: look at it again
#
# After this section you will know what raising attention on visual tokens does to a caption.
#
# Attention to the picture weakens with depth, and the prior fills in what usually stands together. PAINT adds
# $\alpha |A_j|$ to the newest row's logits on *local* tokens and $\beta |A_j|$ on *summary* tokens, before the softmax.

# %%
show_source(paint.boost_logits)

# %%
paint_sets = figures.paint_sets()
paint_sets

# %%
paint_mass = figures.paint_mass()
paint_mass

# %%
paint_heads = figures.paint_heads()
paint_heads

# %%
paint_alpha = figures.paint_alpha()
paint_alpha

# %%
paint_words = figures.paint_words()
paint_words

# %%
print("figure digests", paint_sets.digest, paint_mass.digest, paint_heads.digest, paint_alpha.digest, paint_words.digest)

# %% [markdown]
# A null result, and the mass shows why. PAINT's premise is that attention to the picture fades; in this decoder it does
# not: the last layers give the picture nearly all of their attention, at every position of the caption. Its cut of
# invented names on fresh scenes is not told from zero, nor is PAI's, nor that of random tokens; strong boosts lose recall.
#
# ## VISTA: push along the picture
#
# After this section you will know what a steering vector is, and what the ranks of unsaid words show.
#
# The vector of layer $l$ is the last prompt token's state with the picture less the state without,
# $v_l = h_l^+ - h_l^-$. It is added to what leaves each MLP, more where the output points away from it, and the length
# is restored.

# %%
show_source(vista.steer)

# %%
vista_controls = figures.vista_controls()
vista_controls

# %%
vista_words = figures.vista_words()
vista_words

# %%
vista_grid = figures.vista_grid()
vista_grid

# %%
vista_ranks = figures.vista_ranks()
vista_ranks

# %%
vista_findings = figures.vista_findings()
vista_findings

# %%
vista_nearly = figures.vista_nearly()
vista_nearly

# %% [markdown]
# VISTA works here: at the paper's strengths it removes about three quarters of the invented names on fresh scenes for one
# point of recall. Most of it comes from the early logits; a random vector of equal length does next to nothing. Look at
# the residual site, too: the model goes mute, so CHAIR is 0 and recall with it.
#
# Of the three findings one holds: true names that are never said stand above most absent ones. Names do not lose rank as
# the caption goes on (captions go in reading order, and each name's turn comes), and no early layer ranks them better.

# %%
print("figure digests", vista_controls.digest, vista_words.digest, vista_grid.digest, vista_ranks.digest, vista_findings.digest,
      vista_nearly.digest)

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
# HiRED less another method, on the same scenes. A cell whose interval holds zero says *level*.

# %%
win_board = figures.win_board()
win_board

# %% [markdown]
# HiRED is ahead of pooling, of random tokens and of the overview alone nearly everywhere; the exceptions are 60 % of the
# tokens, where most do well, and places at 5 %, where the overview alone is level. PruMerge is level on counting, and
# PruMerge+ beats HiRED there at 5 %: its even sample misses no region. FastV keeps yes, no and numbers, since it has seen
# the question, and halves the caption, since "describe :" points at nothing.
#
# Which part of HiRED matters? One thing changed at a time, at 20 %:

# %%
variants = figures.variants()
variants

# %% [markdown]
# The split alpha matters at its ends. Counting patches or attention, true regions or the release's strips, first or last
# layer for the budgets: here it makes no difference that 150 scenes can show. This encoder has no background hot spots,
# so the paper's reason for the first layer has nothing to bite on. Renumbering the kept tokens, on the other hand, breaks
# places: a decoder that has only seen full prompts reads a place partly from the distance.
#
# Steering on fresh scenes, each method beside greedy decoding; and what it costs a token.

# %%
steering_final = figures.steering_final()
steering_final

# %%
steering_late = figures.steering_late()
steering_late

# %%
steering_pope = figures.steering_pope()
steering_pope

# %%
steering_price = figures.steering_price()
steering_price

# %%
print("figure digests", win_board.digest, variants.digest, steering_final.digest, steering_late.digest, steering_pope.digest,
      steering_price.digest)

# %% [markdown]
# ## Exercises
#
# Each check names the likely mistake. Hints are folded.

# %%
ex.allocate_budget

# %%
def budget_of_views(attn0: torch.Tensor, budget: int, alpha: float) -> list[int]:
    raise NotImplementedError  # yours

ex.allocate_budget.check(budget_of_views)

# %%
ex.boost_logits

# %%
def boost_logits(A, idx, strength):
    raise NotImplementedError  # yours: (rows, slots), list of int, float -> (rows, slots)

ex.boost_logits.check(boost_logits)

# %%
ex.select_summary_tokens

# %%
def select_summary_tokens(attn):
    raise NotImplementedError  # yours: list of float -> list of int

ex.select_summary_tokens.check(select_summary_tokens)

# %%
ex.steer

# %%
def steer(x, v, lam):
    raise NotImplementedError  # yours: (d,), (d,), float -> (d,)

ex.steer.check(steer)

# %% [markdown]
# ## Limits
#
# - Emoji on pastel ground are no photographs: one drawing a class, no overlap, a vocabulary of 132 words. A theme's
#   companion in 10 % of the training captions stands for the noise of web captions; it sets how much is invented.
# - The decoder has 1.6 million parameters and has only seen 320 visual tokens before a question. Kept tokens therefore
#   keep their decoder positions; the papers renumber them. The variants under *Compare* show what that costs here.
# - The CLS token was trained to name what is in a view, so it looks at objects. On text-rich pictures it may not.
# - Seconds are SmolLM2's on a CPU, in ratios of CPU time; those of a 7B model are roofline bounds.
# - PAINT and VISTA were tuned on other scenes of the same generator. Whether an effect this small carries over to large
#   models cannot be seen here.
#
# ## References
#
# HiRED arXiv 2408.10945; PAINT arXiv 2501.12206; VISTA arXiv 2502.03628. Baselines: FastV 2403.06764; PruMerge
# 2403.15388; PAI 2407.21771; LLaVA 2304.08485. Metrics: CHAIR 1809.02156; POPE 2305.10355.

# %% [markdown] tags=["discussion"]
# ## For the reading group
#
# 1. Why must attention not be compared across views?
#    <details><summary>An answer</summary>Each view has its own softmax, so an empty tile and a crowded one both hand out
#    a sum of one. The overview sees all regions in one softmax; only there do they compete.</details>
# 2. The prefill falls six times at a fifth of the tokens, the answer of 512 tokens gains little. Who profits?
#    <details><summary>An answer</summary>Whoever asks short questions of large pictures: classification, yes or no, a
#    number. In a long chat about one picture the weights are read for every token, whatever the prompt was.</details>
# 3. Random dropping keeps most yes/no answers right. What does that say about a benchmark of yes/no questions?
#    <details><summary>An answer</summary>That it measures the drop poorly: any one token of an object says that it is
#    there. Ask where it is, how many there are, or about small ones, and the methods part.</details>
# 4. A caption gets shorter and its CHAIR falls. Is that a gain?
#    <details><summary>An answer</summary>Only if recall holds. A caption that names nothing invents nothing; so recall and
#    length stand beside CHAIR in every chart here.</details>
# 5. FastV sees the question before it drops. When is that an advantage, and when not?
#    <details><summary>An answer</summary>For one question about one picture it can keep just what is asked for. The second
#    question finds a cache that was cut for the first.</details>

# %% [markdown] tags=["summary"]
# - Visual tokens are most of a multimodal prompt, and most show background. HiRED drops them before the decoder, by the
#   encoder's CLS attention: the overview's first layer shares out the budget among tiles, the last layer picks.
# - Here a fifth of the tokens keeps existence and nearly all of place and small objects; counting loses most. Pooling and
#   the overview alone lose small objects first; PruMerge comes close.
# - What a drop buys is prefill and cache. It fades with the length of the answer: 4.7 times is a figure for 15 new tokens.
# - Ask of any such curve: equal tokens or equal FLOPs? was the question seen? which kind of question? what does pooling
#   or the overview alone reach?
# - PAINT raises attention on chosen visual tokens; here attention to the picture does not fade, and it changes nothing.
#   VISTA pushes states along the picture's direction and mixes in late layers' logits; it removes most invented names.
#   Both cost extra passes, and a fall in CHAIR counts only with recall and length beside it.
