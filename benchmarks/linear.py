"""The small-batch product against PyTorch's, over all weights of the model, by number of rows."""
import pandas as pd
import torch
import torch.nn.functional as F
from common import smollm2

from frugal.core import measure
from frugal.core.linear import MAX_ROWS, _kernel_linear, kernel_rows, linear

ROWS = (1, 2, 4, 8, 16, 24, 32, 64)


def run(quick: bool = False) -> dict:
    lm = smollm2()
    weights = [layer[part] for layer in lm.layers for part in ("qkv", "o", "gate_up", "down")] + [lm.head]
    bandwidth, num_bytes = measure.read_bandwidth(), sum(w.nbytes for w in weights)
    rows = []
    for count in ROWS:
        x = {width: torch.randn(count, width) for width in {w.shape[1] for w in weights}}

        def through(product, x=x):
            for w in weights:
                product(x[w.shape[1]], w)
        fns = {"pytorch": lambda: through(F.linear), "chosen": lambda: through(linear)}
        if count <= MAX_ROWS:
            fns["kernel"] = lambda count=count: through(lambda x, w: _kernel_linear(x, w, count))
        times = measure.compare(fns, repeats=2 if quick else 7).set_index("name")
        rows.append({"rows": count, **{f"{name}_ms": times.median_s[name] * 1e3 for name in fns},
                     "chosen_over_pytorch": times.speedup["chosen"],
                     "bandwidth_share": num_bytes / times.median_s["chosen"] / bandwidth})
    return {"kernel_rows": kernel_rows(torch.get_num_threads()), "weights_bytes": num_bytes, "by_rows": rows}


def markdown(result: dict) -> str:
    lines = [f"All products of one pass, {result['weights_bytes'] / 1e6:.0f} MB of weights; the kernel is chosen up to "
             f"{result['kernel_rows']} rows.", "", "| rows | PyTorch, ms | kernel, ms | chosen, ms | ratio | of read bandwidth |",
             "|---:|---:|---:|---:|---:|---:|"]
    for row in pd.DataFrame(result["by_rows"]).itertuples():
        kernel = "" if pd.isna(row.kernel_ms) else f"{row.kernel_ms:.1f}"
        lines.append(f"| {row.rows} | {row.pytorch_ms:.1f} | {kernel} | {row.chosen_ms:.1f} | "
                     f"{row.chosen_over_pytorch:.2f}x | {row.bandwidth_share:.0%} |")
    return "\n".join(lines)
