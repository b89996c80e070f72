# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Start here
#
# A language model writes one token at a time, and each token costs a walk through memory. This notebook shows where
# the time and the bytes of one generated token go. Every paper in this collection makes one part of that walk shorter.
#
# After ten minutes you will know which part dominates when, why a pass over four tokens costs hardly more than a
# pass over one, and how to read a line of the claim ledger. It runs in under a minute, offline.

# %%
import pandas as pd

import frugal
from frugal.core.recording import load_recorded
from frugal.core.roofline import ModelShape
from frugal.core.sweep import families
from frugal.explore import explore, show_source, start
from frugal.explore import exercises as ex

SCALE = "small"

# %% [markdown]
# ## The first slider
#
# After this section you will know what one token reads, and when the cache outgrows the weights.
#
# To write a token, the model reads every weight once. It also reads the *KV cache*: the keys and values of all earlier
# tokens. Weights are read once for the whole batch; each sequence reads its own cache.
#
# **Guess first:** Llama-3.1-8B has 16 GB of weights. With 32 sequences in a batch, at which context length does a
# token read more cache than weights: 1,024, 4,096 or 65,536 tokens? Then move the sliders.

# %%
rows = start.token_rows()
token_bytes = explore(start.token_bytes, rows, model=list(start.MODELS), context=list(start.CONTEXTS),
                      batch=list(start.BATCHES))
token_bytes

# %%
print("figure digest", token_bytes.digest)

# %% [markdown]
# <details><summary>Answer</summary>
#
# At 4,096 tokens the two are about equal: each of the 32 sequences pays 0.5 GB of the weights and reads 0.54 GB of
# cache. At 65,536 tokens the cache is 17 times the weights. A single short chat is bound by weights; long contexts
# and large batches are bound by the cache. Which paper helps depends on where you stand.
#
# </details>
#
# The bars are counted from the model's shapes in 16 bits, not measured: `token_rows` multiplies layers, heads and
# widths. Here is the line that counts one token of cache: two tensors (keys and values) in every layer.

# %%
show_source(ModelShape.kv_bytes_per_token)

# %% [markdown]
# ## What the eleven families do about it
#
# After this section you will know which family to open for which cost.

# %%
start.family_table(families()).style.hide(axis="index")

# %%
print(start.family_table(families())[["family", "papers", "notebook"]].to_string(index=False))

# %% [markdown]
# ## Why four tokens cost little more than one
#
# After this section you will know why batching, speculation and eviction pay, or do not.
#
# Let $T(n)$ be the time of one pass over $n$ tokens (`pass_s` for `num_tokens`). If a pass is bound by reading
# weights, $T(n)$ is flat: the weights come by once, and each is used $n$ times. Once arithmetic takes longer than
# reading, $T(n)$ grows in step with $n$. The curve was recorded on a quiet two-core machine with SmolLM2 in fp32.
# Switch to "a token" to see what each token of the pass costs.

# %%
measured = load_recorded("explore", "pass_time")
pass_time = explore(start.pass_time, measured, show=["a pass", "a token"])
pass_time

# %%
print("figure digest", pass_time.digest)

# %% [markdown]
# A batch of four sequences, a draft of four tokens to verify, four prompts packed in one: all are passes over four
# tokens, and all live from the flat part of this curve. Where the curve is steep, they stop paying.
#
# The same curve on your machine, three points, measured now (a few seconds; your numbers will differ):

# %% tags=["nbval-ignore-output", "reason: wall-clock time of this machine"]
lm = frugal.load_lm("smollm2-135m")
mine = start.measure_passes(lm, [1, 4, 16])
mine.style.hide(axis="index").format({"pass_s": "{:.4f}", "tok_per_s": "{:.0f}"})

# %% [markdown]
# One token reads `lm.num_bytes` bytes. Divided by the seconds of a one-token pass this is the bandwidth that you get
# out of your memory; no method in this collection can read the same bytes faster. They read fewer.

# %%
print(f"{lm.num_parameters:,} parameters, {lm.num_bytes:,} bytes in fp32")
print(f"one token adds {lm.config.kv_bytes_per_token:,} bytes of cache: "
      f"{lm.num_bytes // lm.config.kv_bytes_per_token:,} tokens of cache weigh as much as the weights")

# %% [markdown]
# ## How to read a claim
#
# After this section you will be able to say what a verdict in this collection means.
#
# Every headline number of every paper that is built here stands in a ledger. A row has the paper's own number
# (`value`), what the miniature measured or counted (`measured`), and what a roofline gives at the paper's scale
# (`projected`). The verdict follows by rule: *reproduced* within the stated tolerance, *direction holds* if the sign
# is right and the size is not, *not reproduced*, or *out of reach here* if nothing on a laptop can test it.
# A test recomputes every verdict and fails when one changes.

# %%
ledger = frugal.claims("kv_eviction", progress=False)
ledger[["paper", "value", "unit", "how", "verdict"]].head(6).style.hide(axis="index")

# %%
print(ledger[["paper", "unit", "how", "verdict"]].to_string(index=False))

# %% [markdown]
# ## One exercise
#
# How many bytes of cache does a model hold? The check says what is wrong, not only that something is.

# %%
ex.cache_bytes

# %%
def cache_bytes(num_layers: int, num_kv_heads: int, head_dim: int, num_tokens: int, bits: int = 16) -> int:
    raise NotImplementedError  # yours

ex.cache_bytes.check(cache_bytes)

# %% [markdown]
# ## The paper map
#
# Fifty-six papers. The arXiv number is the source; `SCOPE.md` says what of each is kept, scaled down or left out.

# %%
with pd.option_context("display.max_colwidth", 90, "display.max_rows", 60):
    print(start.paper_table()[["family", "paper", "arXiv"]].to_string(index=False, max_colwidth=80))

# %% [markdown] tags=["discussion"]
# ## For the reading group
#
# 1. A colleague halves the weights' bytes by quantisation. For which of the settings above does a token get twice
#    as fast?
#    <details><summary>An answer</summary>Only where the weights are nearly all that is read: short contexts at
#    batch 1. At batch 32 and 65,536 tokens the weights are a few per cent.</details>
# 2. Why does the time of a pass stay flat up to a few tokens and then grow?
#    <details><summary>An answer</summary>Reading the weights takes the same time for one token or four. From some
#    number of tokens on the multiplications take longer than the reading; then each further token adds its own
#    time.</details>
# 3. An accelerator has 20 times the bandwidth and 200 times the arithmetic of a laptop. Is its flat part longer or
#    shorter?
#    <details><summary>An answer</summary>Longer, about ten times: the bend sits where arithmetic and reading take
#    equal time, and arithmetic has gained ten times more.</details>

# %% [markdown] tags=["summary"]
# - One token reads all weights once, and the whole cache of its sequence. Weights are shared by a batch, caches are not.
# - One token of SmolLM2 adds 46,080 bytes of fp32 cache; 11,676 tokens of cache weigh as much as the weights.
# - A pass over a few tokens costs little more than over one while reading weights is the limit. Batching, speculation
#   and packing live from that; eviction lives from the other limit, the cache.
# - A ledger row has the paper's number, ours, and a projection; the verdict follows by rule and is tested.
