"""Figures that all papers of the notebook share: rate and distortion, what a set score means, codebook usage, one picture
through every tokenizer."""
import pandas as pd
import plotly.graph_objects as go

from frugal.explore.pictures import image_board
from frugal.explore.pictures.stored import from_text
from frugal.explore.rows import select
from frugal.explore.theme import BLUE, GREY, VERMILION, blank, styles
from frugal.visual_tokenizers.baselines import BASELINES
from frugal.visual_tokenizers.methods import TOKENIZERS

LABELS = {method.name: method.label for method in (*BASELINES, *TOKENIZERS)}
SCORES = {"psnr": ("PSNR of held-out pictures (dB)", True), "elpips": ("eLPIPS of held-out pictures (less is nearer)", False),
          "r_efid": ("r-eFID, all pictures (less is nearer)", False)}
AXES = {"bits": "bits a picture (log scale)", "tokens": "tokens a picture (log scale)"}
RANGES = {"psnr": [10.5, 26], "elpips": [-1.6, 0.4], "r_efid": [-2.1, 2.2]}               # of the log where less is better


def rate_distortion(rows: pd.DataFrame, score: str = "psnr", against: str = "bits", picked: str = "titok") -> go.Figure:
    """Every tokenizer at every count it was made for, against bits or tokens a picture; `picked` stands out.

    rows: recorded "reconstruct", with `mean_picture` in attrs for the level of the mean picture. Baselines are grey.
    """
    label, more = SCORES[score]
    ran = rows[rows.error == ""]
    column = {"bits": "bits", "tokens": "spent_tokens"}[against]
    looks = styles(list(LABELS), tuple(method.name for method in BASELINES))
    own = ran[ran.method == picked].sort_values(column)
    said = ", ".join(f"{value:.3g} at {int(x):,}" for x, value in zip(own[column], own[score]))
    ends = own.iloc[[0, -1][:len(own)]]
    short = ", ".join(f"{value:.3g} at {int(x):,} {against}" for x, value in zip(ends[column], ends[score]))
    fig = blank(f"{LABELS[picked]}: {label.split(' ')[0].rstrip(',')} {short or 'not recorded'}", AXES[against], label, height=470)
    fig.update_xaxes(type="log", range=[-0.2, 4.1] if against == "bits" else [-0.15, 2.3], dtick="D2", exponentformat="SI")
    fig.update_yaxes(type="linear" if more else "log", range=RANGES[score])
    if "mean_picture" in rows.attrs:
        level = rows.attrs["mean_picture"][score]
        fig.add_scatter(x=[0.7, 1.2e4], y=[level] * 2, mode="lines", name="mean picture",
                        line={"color": GREY, "dash": "dot", "width": 1})
    for name in [name for name in LABELS if name in set(ran.method)]:
        part, strong = ran[ran.method == name].sort_values(column), name == picked
        spread = {} if f"{score}_low" not in part else {"error_y": {
            "type": "data", "array": (part[f"{score}_high"] - part[score]).tolist(), "width": 3 if strong else 0,
            "arrayminus": (part[score] - part[f"{score}_low"]).tolist(), "thickness": 1.5 if strong else 0.6}}
        fig.add_scatter(x=part[column].tolist(), y=part[score].tolist(), name=LABELS[name], mode="lines+markers",
                        opacity=1 if strong else 0.6, line={**looks[name].line, "width": 4 if strong else 1.5},
                        marker=looks[name].points, hovertemplate="%{x:,}: %{y:.3g}", **spread)
    best = best_within(ran, score, 512)
    return fig.update_layout(meta={
        "summary": f"{label} against {AXES[against]}: {LABELS[picked]} {said or 'not recorded'}; best within 512 bits: "
        f"{LABELS[best.method]} with {best[score]:.3g} ({int(best.spent_tokens)} tokens)."})


def best_within(ran: pd.DataFrame, score: str, bits: int) -> pd.Series:
    """The row with the best score among those of at most so many bits."""
    fit = ran[ran.bits <= bits]
    return fit.loc[fit[score].idxmax() if SCORES[score][1] else fit[score].idxmin()]


def set_scores(rows: pd.DataFrame, score: str = "efid") -> go.Figure:
    """What eFID, copy rate and the rest say of sets that everybody can picture.

    rows: recorded "sets". score: a column of numbers.
    """
    words = {"efid": "eFID (log scale)", "precision": "precision (share)", "recall": "recall (share)", "copy_rate": "copy rate (share)",
             "label_accuracy": "label accuracy (share)"}
    rows = rows.assign(set=[f"{row['set']} ({row['pictures']:,})" for _, row in rows.iterrows()])
    values = rows[score].clip(lower=1e-3) if score == "efid" else rows[score]
    fig = blank(f"{words[score].split(' (')[0]} of sets everybody can picture", words[score], "set of pictures", height=340, showlegend=False)
    fig.add_bar(x=values.tolist(), y=rows["set"].tolist(), orientation="h", marker_color=BLUE,
                text=[f"{value:.3g}" if abs(value) > 1e-6 else "0" for value in rows[score]], name=score, hovertemplate="%{y}: %{x:.3g}<extra></extra>")
    fig.update_yaxes(autorange="reversed", showgrid=False)
    if score == "efid":
        fig.update_xaxes(type="log", range=[-3, 2.3])
        floor = float(rows.efid_floor.iloc[0])
        fig.add_scatter(x=[floor] * 2, y=[rows["set"].iloc[0], rows["set"].iloc[-1]], mode="lines", name="floor",
                        line={"color": VERMILION, "dash": "dash"}, hovertemplate=f"as many fresh real pictures: {floor:.2f}")
    else:
        fig.update_xaxes(range=[0, 1.05])
    said = "; ".join(f"{row['set']} {row[score] if abs(row[score]) > 1e-6 else 0:.3g}" for _, row in rows.iterrows())
    return fig.update_layout(meta={"summary": f"{words[score]}: {said}."})


def codebook_use(rows: pd.DataFrame, tokenizer: str) -> go.Figure:
    """How often each code of a tokenizer is used on the training pictures, from the most to the least used.

    rows: recorded "codebooks".
    """
    part = select(rows, tokenizer=tokenizer).iloc[0]
    share = [int(count) for count in part.counts.split()]
    whole = sum(share)
    fig = blank(f"{tokenizer}: {part.used:.0%} of {len(share)} codes in use, as many as {part.perplexity:.0f} equally used ones would do",
                "codes, most used first", "share of all tokens", height=340, showlegend=False)
    fig.add_bar(y=[count / whole for count in sorted(share, reverse=True)], x=list(range(len(share))), marker_color=BLUE, name="share",
                hovertemplate="%{x}: %{y:.2%}<extra></extra>", marker_line_width=0)
    fig.add_scatter(x=[0, len(share) - 1], y=[1 / len(share)] * 2, mode="lines", line={"color": GREY, "dash": "dash"},
                    name="if all were used alike", hoverinfo="skip")
    fig.update_layout(bargap=0, yaxis_tickformat=".1%")
    return fig.update_layout(meta={
        "summary": f"{tokenizer}: {part.used:.1%} of {len(share)} codes are used; perplexity {part.perplexity:.1f}."})


def one_picture(rows: pd.DataFrame, name: str, budget: int = 16) -> go.Figure:
    """One emoji through every tokenizer that has a setting within `budget` tokens; the original first.

    rows: recorded "board": name, budget, label, tokens, bits, psnr and image (text).
    """
    part = select(rows, name=name, budget=budget)
    return picture_board(part.to_dict("records"), f"{name}: at most {budget} tokens")


def picture_board(found: list[dict], title: str) -> go.Figure:
    """Pictures with tokens, bits and PSNR below each; the first is the original. found: rows as `live_picture` makes them."""
    captions = [row["label"] if row["tokens"] == 0 else
                f"{row['label']}<br>{row['tokens']} tok, {row['bits']:.0f} bit, {row['psnr']:.1f} dB" for row in found]
    plain = [caption.replace("<br>", ": ") for caption in captions]
    fig = image_board([from_text(row["image"]) for row in found], plain, title=title, columns=6,
                      values=[row["psnr"] for row in found], value="PSNR (dB)")
    for note, caption in zip(fig.layout.annotations, captions):
        note.text = caption
    decoded = [row for row in found if row["tokens"]]
    best = max(decoded, key=lambda row: row["psnr"])
    fig.layout.meta["summary"] = (f"{title}: {len(decoded)} reconstructions; nearest in PSNR: {best['label']} with {best['tokens']} tokens, "
                                  f"{best['psnr']:.1f} dB.")
    return fig
