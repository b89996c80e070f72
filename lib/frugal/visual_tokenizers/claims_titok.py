"""Headline numbers of TiTok (arXiv 2406.07550), checked on recorded rows of the miniature and by a roofline.

The paper's scores are FID on ImageNet, ours eFID on emoji, so only ratios and directions are judged. Ours come without guidance.
"""
import pandas as pd

from frugal.core.claims import Claim, Evidence
from frugal.core.papers import paper
from frugal.core.recording import load_recorded
from frugal.visual_tokenizers.titok_cost import DECODER, DECODER_B, chain, lengths, speedup

__all__ = ["CLAIMS"]

TITOK = paper("titok")
ABSTRACT = "arXiv 2406.07550, abstract"
TABLE = "table of released models in repository bytedance/1d-tokenizer"
FAMILY = "visual_tokenizers"


def _generated(tokenizer: str, kind: str) -> pd.Series:
    """The generator's row at the temperature with its lowest g-eFID."""
    rows = load_recorded(FAMILY, "titok_generated")
    own = rows[(rows.tokenizer == tokenizer) & (rows.kind == kind)]
    return own.loc[own.efid.idxmin()]


def _reconstructed(method: str, tokens: int) -> pd.Series:
    rows = load_recorded(FAMILY, "reconstruct")
    return rows[(rows.method == method) & (rows.spent_tokens == tokens) & (rows.error == "")].iloc[0]


def _said(row: pd.Series) -> str:
    return f"{row.efid:.3g} [{row.efid_low:.3g}, {row.efid_high:.3g}], copy rate {row.copy_rate:.2f}"


def _speed(kind: str, of: str, column: str = "cpu_ms", batch: int = 1) -> float:
    rows = load_recorded(FAMILY, "titok_speed")
    return float(rows[(rows.kind == kind) & (rows.of == of) & (rows.batch == batch)][column].iloc[0])


def _better_generation() -> Evidence:
    ours, grid = (_generated(name, "maskgit") for name in ("titok_16", "vq_grid_64"))
    other, other_grid = (_generated(name, "ar") for name in ("titok_16", "vq_grid_64"))
    return Evidence(round(float(ours.efid / grid.efid), 2), note=f"g-eFID, masked generator, 8 steps, best of four temperatures: TiTok-16 {_said(ours)}; grid of 64 {_said(grid)}; "
                    f"floor {ours.floor:.2f}. Autoregressive, in 16 and 64 steps: {_said(other)}; {_said(other_grid)}")


def _reconstruction() -> Evidence:
    ours, grid = _reconstructed("titok", 32), _reconstructed("vq_grid", 64)
    return Evidence(round(float(ours.r_efid / grid.r_efid), 2), note=f"r-eFID {ours.r_efid:.3g} with 32 tokens ({ours.bits:.0f} bits), "
                    f"{grid.r_efid:.3g} with the grid's 64 ({grid.bits:.0f} bits); PSNR {ours.psnr:.1f} and {grid.psnr:.1f} dB: at half the bits "
                    "a picture of 32 px has no redundancy left to save")


def _short_row_generates_best() -> Evidence:
    rows = load_recorded(FAMILY, "titok_generated")
    own = rows[(rows.kind == "ar") & rows.tokenizer.str.startswith("titok")].sort_values("tokens")
    best, back = own.loc[own.efid.idxmin()], own.loc[own.r_efid.idxmin()]
    said = "; ".join(f"{row.tokens}: r-eFID {row.r_efid:.3g}, g-eFID {row.efid:.3g}" for row in own.itertuples())
    return Evidence(round(float(best.tokens / back.tokens), 3), note=f"tokens with the best g-eFID over tokens with the best r-eFID; {said}")


def _row_against_squares() -> Evidence:
    near = ", ".join(f"{_reconstructed('titok', k).elpips:.2f} against the grid's {_reconstructed('vq_grid', k).elpips:.2f} at {k}" for k in (4, 16))
    gains = {k: float(_reconstructed("titok", k).psnr - _reconstructed("vq_grid", k).psnr) for k in (4, 16)}
    return Evidence(round(gains[4], 2), note=f"held-out PSNR with 4 tokens of 8 bits; with 16 tokens {gains[16]:+.2f} dB: level rather than better. "
                    f"eLPIPS (lower is nearer) {near}: at 32 px each code of a coarse grid sees the whole picture too")


def _faster() -> Evidence:
    here = {count: _speed("ar", "64") / _speed("ar", str(count)) for count in (32, 16, 8)}
    factors = chain().set_index("change")["s_64_factor"]
    return Evidence(round(here[8], 1), round(speedup(64, 8, DECODER), 0), note="roofline at 64 a time on an A100, pixel decoders left out: steps "
                    f"{factors.iloc[1]:.0f}x, smaller generator {factors.iloc[2]:.1f}x, tokens {factors.iloc[3]:.0f}x, TiTok's own decoder "
                    f"{factors.iloc[4]:.2f}x; one at a time {speedup(64, 8, DECODER, 1):.0f}x. Measured: an autoregressive generator here, 64 tokens "
                    f"against 32, 16 and 8: {here[32]:.1f}x, {here[16]:.1f}x, {here[8]:.1f}x of processor time")


def _best_variant() -> Evidence:
    return Evidence(projected=round(speedup(128, 64, DECODER_B), 0), note="128 tokens, 64 steps (steps recalled, not checked), 64 a time, "
                    "least times on an A100; pixel decoders left out")


def _fewer_tokens() -> Evidence:
    return Evidence(measured=1024 / 64, note="DiT's latent has 64 x 64 = 4,096 places, which makes 64 times; its transformer sees patches of 2 x 2, "
                    "1,024 tokens: 16 times fewer pass the generator")


def _shorter_rows() -> Evidence:
    at = lengths().set_index(["tokens", "batch"])["speedup"]
    here = {kind: _speed(kind, "64") / _speed(kind, "8") for kind in ("ar", "maskgit")}
    work = _speed("maskgit", "64", "gflops") / _speed("maskgit", "8", "gflops")
    return Evidence(round(here["maskgit"], 2), round(float(at[32, 64]), 2), note=f"masked generator, 8 steps, 64 against 8 tokens, processor time ({work:.1f}x in "
                    f"FLOPs); autoregressive {here['ar']:.1f}x. Roofline of the 177 M generator, 256 against 32 tokens: {at[32, 64]:.1f}x at 64 a "
                    f"time, {at[32, 1]:.1f}x one at a time, where reading the weights takes longer than the products")


CLAIMS = [
    Claim("titok_gfid", TITOK, "gFID 1.97 on ImageNet 256, where MaskGIT with a grid has 6.18 (4.21 more)", 0.32, "ratio", ABSTRACT,
          "measured", _better_generation, "not reproduced", side="at most"),
    Claim("titok_rfid", TITOK, "32 tokens reconstruct as well as a grid of 256 (rFID 2.21; MaskGIT's VQGAN 2.28)", 0.97, "ratio",
          f"{TABLE}; the grid's 2.28 is recalled", "measured", _reconstruction, "not reproduced", side="at most", neutral=2.0),
    Claim("titok_short_rows_generate", TITOK, "the best generator stands on another length than the best reconstruction "
          "(rFID/gFID: L-32 2.21/2.77, B-64 1.70/2.48, S-128 1.71/1.97)", 2.0, "ratio", TABLE, "measured", _short_row_generates_best,
          "not reproduced"),
    Claim("titok_row_beats_squares", TITOK, "at equal length a row of tokens keeps more than a grid of squares", 1.0, "dB",
          "arXiv 2406.07550, section 1 (direction; 1 dB is ours)", "measured", _row_against_squares, "direction holds", side="at least"),
    Claim("titok_410x", TITOK, "generation at 512 px 410 times faster than DiT-XL/2", 410.0, "x", ABSTRACT, "projected", _faster,
          "reproduced", tolerance=0.2),
    Claim("titok_74x", TITOK, "the best variant (gFID 2.13) is 74 times faster than DiT-XL/2", 74.0, "x", ABSTRACT, "projected",
          _best_variant, "reproduced", tolerance=0.2),
    Claim("titok_64x_tokens", TITOK, "64 times fewer tokens than DiT-XL/2", 64.0, "x", ABSTRACT, "counted", _fewer_tokens, "direction holds"),
    Claim("titok_8x_shorter", TITOK, "an eighth of the tokens makes the generator faster in proportion", 8.0, "x",
          "arXiv 2406.07550, section 1 (256 against 32 tokens; proportion is our reading)", "measured", _shorter_rows, "direction holds", tolerance=0.2),
]
