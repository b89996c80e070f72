"""Headline claims of TIM/TIMRUN, checked on the mini TIM and its runtime."""
import functools
import math
import statistics
import time

from frugal.core.claims import Claim, Evidence
from frugal.core.lm import LM, random_lm
from frugal.core.papers import paper
from frugal.kv_eviction import tim_measure
from frugal.kv_eviction.timrun import TIMRun
from frugal.models.mini_tim import SHAPE

TIM = paper("timrun")
ABSTRACT = "arXiv 2507.16784, abstract"


def _long_lm() -> LM:
    """A model of the mini TIM's size whose positions do not end; what it says is not used."""
    sizes = {k: v for k, v in SHAPE.items() if k not in ("rope_theta", "norm_eps", "max_positions")}
    return random_lm(**sizes, max_positions=100_000)


@functools.lru_cache
def _replayed(threshold: int | float, num_nodes: int = 60) -> TIMRun:
    document = tim_measure.problem(num_nodes, 0)
    return tim_measure.Replay(_long_lm(), document.look, threshold).replay(document)


def _pruned_share() -> Evidence:
    run = _replayed(0)
    freed = sum(b - a for _, spans in run.frees for a, b in spans)
    return Evidence(100 * freed / len(run.tokens), note=f"{freed:,} of {len(run.tokens):,} tokens left the memory of a run; "
                    "the paper's share counts the cache that its runtime manipulates")


def _memory_saved() -> Evidence:
    pruned, whole = _replayed(0), _replayed(math.inf)
    return Evidence(100 * (1 - pruned.owned_bytes / whole.owned_bytes),
                    note=f"pages at the peak, {pruned.peak_tokens:,} against {whole.peak_tokens:,} tokens of the same text")


def _throughput() -> Evidence:
    lm, document = _long_lm(), tim_measure.problem(30, 0)
    ratios = []
    for _ in range(3):
        seconds = {}
        for threshold in (0, math.inf):
            started = time.process_time()
            tim_measure.Replay(lm, document.look, threshold).replay(document)
            seconds[threshold] = time.process_time() - started
        ratios.append(seconds[math.inf] / seconds[0])
    return Evidence(round(statistics.median(ratios), 2), note="CPU time of the same text unpruned over pruned, median of 3, in this process")


def _beyond_the_limit() -> Evidence:
    rows = tim_measure.load_accuracy()
    own = rows[rows["method"] == "threshold 0"]
    table = tim_measure.summary(own)
    good = table[table["right_pct"] >= 50]
    if good.empty:
        return Evidence(0.0, note="no size was answered rightly in half of the runs")
    longest = good.sort_values("trace_tokens").iloc[-1]
    return Evidence(round(float(longest["trace_tokens"]) / float(own["limit"].max()), 2),
                    note=f"longest recorded size with at least half of the answers right ({longest['right_pct']:.0f} %), "
                    f"in positions of the model ({int(own['limit'].max())}); the miniature was trained for these trees")


CLAIMS = [
    Claim(key="timrun_cache_manipulated", paper=TIM, quote="Up to 90 % of the KV cache is pruned away during reasoning",
          value=90, unit="%", source=ABSTRACT, how="counted", check=_pruned_share, verdict="reproduced", neutral=0,
          side="at least", tolerance=0.05),
    Claim(key="timrun_memory", paper=TIM, quote="Half the memory on long sequences", value=50, unit="%",
          source="repository subconscious-systems/TIMRUN, README", how="measured", check=_memory_saved, verdict="reproduced",
          neutral=0, side="at least"),
    Claim(key="timrun_throughput", paper=TIM, quote="Throughput is sustained while the cache is pruned", value=1, unit="x",
          source=ABSTRACT, how="measured", check=_throughput, verdict="reproduced", side="at least", tolerance=0.3, neutral=math.nan),
    Claim(key="timrun_beyond_limit", paper=TIM, quote="Working memory without a limit: text longer than the positions of the model",
          value=1, unit="x", source=ABSTRACT, how="measured", check=_beyond_the_limit, verdict="reproduced", side="at least", neutral=0),
]
