"""GenSE as trained and recorded: gates on few clips, what was recorded comes out again, figures, claims, sound, the live run."""
import json
import math

import numpy as np
import pytest
import torch

from frugal.core.claims import check_recorded
from frugal.core.recording import load_recorded
from frugal.data.formant_speech import make_clip
from frugal.explore import live
from frugal.explore.exercises import problems
from frugal.models import list_weights, load_card
from frugal.models.quantizers import codebook_usage
from frugal.visual_tokenizers import figures_gense, live_gense
from frugal.visual_tokenizers.claims_gense import CLAIMS
from frugal.visual_tokenizers.exercises_gense import EXERCISES, GOLDEN
from frugal.visual_tokenizers.gense import CHUNK, chain_of, load_gense
from frugal.visual_tokenizers.gense_audio import griffin_lim, log_mel, wav_bytes
from frugal.visual_tokenizers.gense_baselines import load_regression
from frugal.visual_tokenizers.gense_judge import judged, load_judge
from frugal.visual_tokenizers.gense_measure import GENERATED_BY, SCORES, SNRS, decode_flops, mixtures, outputs, paper_scale
from frugal.visual_tokenizers.gense_shown import Players, players, recorded_clips

COUNT = 12


@pytest.fixture(scope="module")
def system():
    return load_gense()


@pytest.fixture(scope="module")
def data():
    return mixtures(COUNT, 5)


@pytest.fixture(scope="module")
def scored(system, data):
    clean = log_mel(data.clean)
    return {name: judged(mel, data.clips, clean, load_judge()) for name, mel in outputs(system, load_regression(), data).items()}


def errors(scores, judge="strict"):
    return scores[f"edits_{judge}"].sum() / scores["said"].sum()


def test_the_judge_hears_clean_speech_and_its_speaker(scored):
    clean = scored["clean", 0.0]
    assert errors(clean) < 0.03 and errors(clean, "robust") < 0.08 and clean["distance_db"].max() == 0
    assert clean["voice_error"].sum() < 0.05 * clean["voice_spread"].sum()


def test_two_stages_beat_noise_and_one_stage_and_the_prompt_keeps_the_voice(scored):
    two, one, blind, noisy = (scored[name, 0.0] for name in ("two-stage", "one-stage", "no noisy prompt", "noisy"))
    assert errors(two) < 0.5 * errors(noisy) and errors(two) < 0.5 * errors(one)
    assert two["voice_error"].sum() < blind["voice_error"].sum()
    assert errors(scored["codec of clean speech", 0.0]) < 0.12


def test_tokenizers_use_their_codes_and_semantic_ones_hold_under_noise(system, data):
    clean, noisy = system.semantic.encode(data.clean), system.semantic.encode(data.noisy)
    assert codebook_usage(clean, 64)["perplexity"] > 25 and float((clean == noisy).float().mean()) > 0.6
    assert codebook_usage(system.acoustic.encode(data.clean), 512)["perplexity"] > 100
    features = system.semantic.features(log_mel(data.clean))[:2]
    far = (features[..., None, :] - system.semantic.codebook).square().sum(-1)
    assert far.argmin(-1).equal(clean[:2])


@pytest.mark.parametrize("variant", ["n2s", "s2s"])
def test_trained_cached_decoding_is_that_of_the_whole_chain(system, data, variant):
    codes = system.enhance(data.noisy[:2], temperature=0.0).codes
    net, target = system.decoders[variant], codes["clean_semantic" if variant == "n2s" else "clean_acoustic"]
    with torch.no_grad():
        chain = chain_of(variant, codes, target)
        logits = net(chain.ids, chain.positions)[:, :-1][:, chain.is_target[1:]]
    first = net.allowed[0]
    chosen, best = logits.gather(-1, target[..., None] + first)[..., 0], logits.max(-1).values
    assert float((best - chosen).max()) < 1e-4


def test_all_weights_are_small():
    names = list_weights("gense_")
    assert len(names) == 8
    assert sum(load_card(name)["num_bytes"] for name in names) < 2.7e6


# -- recorded -----------------------------------------------------------------------------------------------------

def test_recorded_scores_are_whole_and_come_out_again(scored):
    rows = load_recorded("visual_tokenizers", "gense_scores")
    assert set(rows.snr_db) == set(SNRS) and set(rows.score) == set(SCORES) and (rows.low <= rows.value).all() and (rows.value <= rows.high).all()
    assert set(rows.method) == {"noisy", "spectral subtraction", "regression", "codec of clean speech", "clean", *GENERATED_BY}
    cell = rows[(rows.snr_db == 5) & (rows.method == "two-stage") & (rows.temperature == 0) & (rows.noise == "all") & (rows.score == "edits_strict")].iloc[0]
    assert abs(100 * errors(scored["two-stage", 0.0]) - cell.value) < 12                     # twelve of its two hundred clips


def test_recorded_costs_follow_the_counts(system):
    rows = load_recorded("visual_tokenizers", "gense_cost").set_index(["clips", "stage", "cached"])
    for stage, variant, prompt in (("N2S", "n2s", 33), ("S2S", "s2s", 97), ("one-stage", "one_stage", 33)):
        for cached in (True, False):
            want = decode_flops(prompt, CHUNK, 4, 64, 192, system.decoders[variant].tokens.num_embeddings, cached) / 1.28
            assert rows.loc[(1, stage, cached)].flops_per_s == pytest.approx(want, rel=0.03)
            assert rows.loc[(16, stage, cached)].flops_per_s == pytest.approx(rows.loc[(1, stage, cached)].flops_per_s, rel=1e-4)
    for stage in ("N2S", "S2S", "one-stage"):
        assert rows.loc[(1, stage, True)].flops_per_s < 0.1 * rows.loc[(1, stage, False)].flops_per_s and rows.loc[(1, stage, True)].tokens_per_s == 25
    assert rows.loc[(16, "S2S", True)].times_faster > rows.loc[(1, "S2S", True)].times_faster > 1
    scale = paper_scale()
    assert (scale.ratio.diff().dropna() > 0).all()                                            # the longer, the more the cache saves


def test_probe_reads_the_voice_from_acoustic_tokens_only():
    rows = load_recorded("visual_tokenizers", "gense_voice").set_index(["tokens", "voice"]).r2
    assert all(rows["acoustic"] > 0.5) and all(rows["semantic"] < 0.25)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.key)
def test_verdicts_are_the_recorded_ones(claim):
    assert check_recorded([claim])[0].verdict == claim.verdict and claim.paper.key == "gense"


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_the_exercise_takes_the_reference_and_names_each_mistake(exercise):
    assert problems(exercise) == []


def test_the_golden_example_is_what_the_library_does():
    (noisy, clean, acoustic), (ids, positions) = GOLDEN
    parts = {"noisy_semantic": torch.tensor([noisy]), "clean_semantic": torch.tensor([clean]), "noisy_acoustic": torch.tensor([acoustic])}
    chain = chain_of("s2s", parts, torch.tensor([[7]]))
    assert chain.ids[0, :-1].tolist() == ids and chain.positions.tolist() == positions


# -- figures and sound --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", figures_gense.FIGURES)
def test_every_figure_builds_with_all_its_points(name):
    payload = figures_gense.FIGURES[name]().payload
    assert len(payload["points"]) == math.prod(len(c["values"]) for c in payload["controls"])
    assert all("e" not in point and len(point["s"]) > 20 for point in payload["points"])
    assert len(json.dumps(payload)) < 250_000


def test_the_picture_marks_the_tokens_that_differ():
    clips = recorded_clips()
    fig = figures_gense.spectrograms(clips, 1)
    strip = fig.data[-1]
    codes = clips[1]["codes"]
    assert [list(row) for row in strip.z][0] == [int(a == b) for a, b in zip(codes["noisy_semantic"], codes["true_semantic"])]
    assert all(strip.z[2]) and all(strip.z[5]) and len(fig.data) == 4


@pytest.mark.parametrize("clip", range(3))
def test_players_hold_small_sounds_and_say_so_in_text(clip):
    shown = players(clip)
    page = shown._repr_html_()
    assert page.count("<audio controls") == 5 and len(page) < 80_000 and "(1.28 s)" in repr(shown) and "0x" not in repr(shown)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            players(bad)
    with pytest.raises(ValueError, match="WAV"):
        Players({"x": b"no"})


# -- the live run -------------------------------------------------------------------------------------------------

def form():
    return live(live_gense.enhance_own, live_gense.three_spectrograms, recorded=live_gense.recorded_result(), **live_gense.inputs())


def test_the_live_run_gives_the_recorded_result_for_its_first_inputs():
    want, got = live_gense.recorded_result(), live_gense.first_result()
    assert got["said"] == want["said"] and got["heard"] == want["heard"]
    assert np.abs(got["mels"]["enhanced"].clamp(-2, 1).numpy() - want["mels"]["enhanced"].numpy()).max() < 0.05
    fig = live_gense.three_spectrograms(got)
    assert len(fig.data) == 3 and "enhanced: " in fig.layout.meta["summary"]


def test_every_choice_of_the_form_runs():
    explorer = form()
    choices = {name: given.control.values for name, given in explorer.inputs.items() if hasattr(given, "control")}
    for turn in range(max(map(len, choices.values()))):
        picked = {name: values[turn % len(values)] for name, values in choices.items()}
        result = live_gense.enhance_own({**explorer.defaults(), **picked, "words": "ma tise"}, lambda share: None)
        assert len(result["mels"]) == 3 and live_gense.sounds_of(result)


def test_an_own_file_is_enhanced_and_its_length_kept():
    explorer, clip = form(), make_clip(7, 20_800)
    content = wav_bytes(clip.audio)
    samples = explorer.inputs["wav"].parse({"name": "my.wav", "buffer": 0}, [content])
    result = live_gense.enhance_own({**explorer.defaults(), "wav": samples}, lambda share: None)
    assert result["said"] is None and set(result["mels"]) == {"noisy", "enhanced"} and len(result["mels"]["enhanced"]) == 20_800 // 320 * 2
    assert len(live_gense.three_spectrograms(result).data) == 2


@pytest.mark.parametrize("content, said", [(b"RIFFnothing", "no WAV file"), (wav_bytes(griffin_lim(torch.full((1, 4, 40), -2.0))[0])[:60], "0.16 to 10 s")])
def test_an_unusable_file_is_one_clear_error(content, said):
    with pytest.raises(ValueError, match=said):
        form().inputs["wav"].parse({"name": "my.wav", "buffer": 0}, [content])


@pytest.mark.parametrize("words, said", [("hello", "no such words"), ("", "0 words"), (" ".join(["ma"] * 40), "40 words")])
def test_bad_words_are_one_clear_error(words, said):
    with pytest.raises(ValueError, match=said):
        live_gense.check_words(words)


def test_nothing_to_hear_before_the_first_run():
    with pytest.raises(ValueError, match="press Run"):
        live_gense.sounds_of(None)
