"""GenSE on small random networks: chains, positions, masks, cache, sound, and what is refused."""
import io
import wave

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from frugal.core.measure import counted_flops
from frugal.data.formant_speech import HELD_OUT, LEVEL, SAMPLE_RATE, make_clip
from frugal.visual_tokenizers.gense import BOS, CHUNK, GENERATED, PARTS, SPECIAL, Chain, ChainDecoder, GenSE, chain_of, pick
from frugal.visual_tokenizers.gense_audio import check_audio, griffin_lim, log_mel, mel_weights, powers, read_wav, sound, spectra, standard, wav_bytes
from frugal.visual_tokenizers.gense_baselines import spectral_subtraction
from frugal.visual_tokenizers.gense_judge import edits, mel_distance, phonemes_of
from frugal.visual_tokenizers.gense_measure import decode_flops
from frugal.visual_tokenizers.gense_nets import AcousticCodec, SemanticTokenizer

VARIANTS = list(PARTS)


def codes(count=6, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    def draw(size):
        return torch.randint(size, (batch, count), generator=g)
    return {"noisy_semantic": draw(64), "clean_semantic": draw(64), "noisy_acoustic": draw(512), "clean_acoustic": draw(512)}


def decoder(variant, seed=0):
    torch.manual_seed(seed)
    net = ChainDecoder(variant, width=16, num_blocks=2, num_heads=2)
    for p in net.parameters():                                        # biases too: no symmetry may hide a mistake
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.normal_(p, mean=1.0 if p.mean() > 0.5 else 0.0, std=0.1)
    return net.eval()


def target_of(variant, parts):
    return parts["clean_semantic" if variant == "n2s" else "clean_acoustic"]


# -- chains -------------------------------------------------------------------------------------------------------

def test_the_chain_of_the_second_stage_is_the_papers():
    parts = {name: torch.tensor([[value, value + 1]]) for name, value in (("noisy_semantic", 0), ("clean_semantic", 10), ("noisy_acoustic", 20))}
    chain = chain_of("s2s", parts, torch.tensor([[30, 31]]))
    assert chain.ids.tolist() == [[3, 4, 13, 14, BOS, 87, 88, 97, 98]]
    assert chain.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, GENERATED, GENERATED + 1]
    assert chain.is_target.tolist() == [False] * 7 + [True] * 2


def test_a_target_of_the_first_stage_shares_the_position_of_its_source():
    parts = codes(5)
    chain = chain_of("n2s", parts, parts["clean_semantic"])
    assert chain.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert (chain.ids[:, :5] - SPECIAL).equal(parts["noisy_semantic"]) and (chain.ids[:, 6:] - SPECIAL).equal(parts["clean_semantic"])


@settings(max_examples=30, deadline=None)
@given(variant=st.sampled_from(VARIANTS), count=st.integers(1, CHUNK), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_chains_hold_every_part_once_and_stay_in_range(variant, count, batch, seed):
    parts = codes(count, batch, seed)
    chain = chain_of(variant, parts, target_of(variant, parts))
    net = ChainDecoder(variant, width=8, num_blocks=1, num_heads=2)
    assert chain.ids.shape == (batch, len(PARTS[variant]) * count + 1) and len(chain.positions) == chain.ids.shape[1]
    assert int(chain.ids.max()) < net.tokens.num_embeddings and int(chain.positions.max()) < len(net.positions)
    assert int(chain.is_target.sum()) == count and chain.is_target[-count:].all()
    first, last = net.allowed
    assert ((chain.ids[:, chain.is_target] >= first) & (chain.ids[:, chain.is_target] < last)).all()


# -- decoders -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_asked_kind_of_token_has_any_probability(variant):
    net, parts = decoder(variant), codes()
    with torch.no_grad():
        chain = chain_of(variant, parts)
        probs = net(chain.ids, chain.positions).softmax(-1)
    first, last = net.allowed
    assert float(probs[..., :first].sum()) == float(probs[..., last:].sum()) == 0.0 and last - first == (64 if variant == "n2s" else 512)
    made = net.generate(parts, 1.0, torch.Generator().manual_seed(0))
    assert 0 <= int(made.min()) and int(made.max()) < last - first


def replayed(net, parts, made):
    """Logits of the generated tokens, the whole chain at once."""
    chain = chain_of(net.variant, parts, made)
    return net(chain.ids, chain.positions)[:, :-1][:, chain.is_target[1:]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_logits_are_those_of_the_whole_chain(variant):
    net, parts, seen = decoder(variant), codes(), []
    head = net.head
    net.head = lambda states: seen.append(head(states)) or seen[-1]
    made = net.generate(parts, temperature=0.0)
    net.head = head
    with torch.no_grad():
        want = replayed(net, parts, made)
    first, last = net.allowed
    got = torch.cat([logits[:, -1:] for logits in seen], 1)
    assert (got[..., first:last] - want[..., first:last]).abs().max() < 1e-5
    assert made.equal(net.generate(parts, temperature=0.0, cached=False))
    drawn = [net.generate(parts, 1.0, torch.Generator().manual_seed(4), cached) for cached in (True, False)]
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(made)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_mean_over_targets_alone(variant):
    net, parts = decoder(variant), codes()
    target = target_of(variant, parts)
    with torch.no_grad():
        value, _ = net.loss(chain_of(variant, parts, target))
        probs = replayed(net, parts, target).log_softmax(-1)
    own = [-float(probs[b, t, target[b, t] + net.allowed[0]]) for b in range(2) for t in range(target.shape[1])]
    assert float(value) == pytest.approx(np.mean(own), rel=1e-4)


def test_planted_mistakes_are_seen():
    """Loss on prompt tokens, positions that run on, and a mask that lets other kinds through: each gives another number."""
    net, parts = decoder("s2s"), codes()
    target = parts["clean_acoustic"]
    right = chain_of("s2s", parts, target)
    with torch.no_grad():
        value = float(net.loss(right)[0])
        on_prompt = net.loss(Chain(right.ids, right.positions, torch.ones(len(right.positions), dtype=torch.bool)))[0]
        running_on = net.loss(Chain(right.ids, torch.arange(len(right.positions)), right.is_target))[0]
    assert not float(on_prompt) == pytest.approx(value, rel=0.01)     # infinite: prompt ids may not be generated
    assert not float(running_on) == pytest.approx(value, rel=1e-3)
    with torch.no_grad():
        open_head = net.trunk(net.embed(right.ids, right.positions), causal=True) @ net.tokens.weight.T
    assert float(open_head.softmax(-1)[..., :net.allowed[0]].sum()) > 0


def test_later_tokens_do_not_reach_back():
    net, parts = decoder("s2s"), codes()
    chain = chain_of("s2s", parts, parts["clean_acoustic"])
    other = chain.ids.clone()
    other[:, -1] = other[:, -1] % 100 + SPECIAL + 64
    with torch.no_grad():
        a, b = net(chain.ids, chain.positions), net(other, chain.positions)
    assert a[:, :-1].equal(b[:, :-1]) and not a[:, -1].equal(b[:, -1])


def test_temperature_zero_takes_the_likeliest_and_one_draws_plainly():
    logits = torch.tensor([[0.0, 2.0, 1.0]]).expand(20_000, 3)
    drawn = torch.bincount(pick(logits, 1.0, torch.Generator().manual_seed(0)), minlength=3) / 20_000
    assert (drawn - logits[0].softmax(-1)).abs().max() < 0.015
    assert (pick(logits, 0.0) == 1).all()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("variant", ["n2s", "s2s"])
def test_counted_flops_follow_the_closed_form(variant, cached):
    net, parts = decoder(variant), codes(5, batch=1)
    prompt = sum(1 if kind == "bos" else 5 for kind in PARTS[variant])
    want = decode_flops(prompt, 5, 2, 16, 48, net.tokens.num_embeddings, cached)
    assert counted_flops(lambda: net.generate(parts, 0.0, cached=cached)) == pytest.approx(want, rel=0.02)


# -- tokenizers ---------------------------------------------------------------------------------------------------

def test_clusters_are_the_nearest_by_brute_force():
    torch.manual_seed(0)
    net = SemanticTokenizer(width=8, dim=4, codebook_size=9)
    features = torch.randn(3, 5, 4)
    want = [[min(range(9), key=lambda k: float(((f - net.codebook[k]) ** 2).sum())) for f in row] for row in features]
    assert net.nearest(features).tolist() == want


def system():
    torch.manual_seed(0)
    return GenSE(SemanticTokenizer(width=8).eval(), AcousticCodec(width=8).eval(), {variant: decoder(variant) for variant in PARTS})


@pytest.mark.parametrize("samples", [10_240, 16_000, 1_500])
def test_enhanced_speech_has_the_length_of_the_noisy_one_in_whole_tokens(samples):
    audio = torch.randn(2, samples)
    found = system().enhance(audio)
    count = samples // 320
    assert found.mel.shape == (2, 2 * count, 40) and all(c.shape == (2, count) for c in found.codes.values())
    assert set(found.codes) == {"noisy_semantic", "noisy_acoustic", "clean_semantic", "clean_acoustic"}


def test_each_variant_uses_its_own_prompt():
    made, audio = system(), torch.randn(1, 10_240)
    first = made.enhance(audio, temperature=0.0)
    assert "clean_semantic" not in made.enhance(audio, hierarchy=False).codes
    parts = {kind: first.codes[kind] for kind in ("noisy_semantic", "clean_semantic", "noisy_acoustic")}
    assert made.decoders["s2s"].generate(parts, 0.0).equal(first.codes["clean_acoustic"])
    assert made.decoders["no_prompt"].generate(parts, 0.0).equal(made.enhance(audio, prompt=False, temperature=0.0).codes["clean_acoustic"])
    assert not made.enhance(audio, seed=1).codes["clean_acoustic"].equal(made.enhance(audio, seed=2).codes["clean_acoustic"])


# -- sound --------------------------------------------------------------------------------------------------------

def test_spectra_and_sound_are_inverse():
    audio = torch.randn(2, 3200)
    assert (sound(spectra(audio), 3200) - audio)[:, 200:-200].abs().max() < 1e-5


def test_mel_frames_stand_where_the_labels_do():
    clip = make_clip(HELD_OUT + 1)
    loud = log_mel(torch.from_numpy(clip.audio)[None])[0].max(-1).values
    inner = np.array([i for i in range(1, 63) if clip.labels[i - 1] == clip.labels[i] == clip.labels[i + 1]])
    silent, vowel = (inner[np.isin(clip.labels[inner], of)] for of in ([0], range(1, 7)))
    assert float(loud[silent].max()) < float(loud[vowel].min())


def test_mel_scale_is_even_and_goes_back():
    power = torch.rand(3, 40) + 1e-4
    assert torch.allclose(powers(standard(power)), power, rtol=1e-3, atol=1e-6)
    assert (mel_weights().sum(1) > 0).all() and (mel_weights().max(0).values <= 1).all()
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(3200) / SAMPLE_RATE)[None]
    centres = (mel_weights() @ (torch.arange(257) * SAMPLE_RATE / 512)) / mel_weights().sum(1)
    assert abs(float(centres[log_mel(tone)[0, 10].argmax()]) - 1000) < 80


def test_griffin_lim_sounds_like_the_frames():
    mel = log_mel(torch.from_numpy(make_clip(HELD_OUT).audio)[None])
    assert float(mel_distance(log_mel(griffin_lim(mel)), mel)[0]) < 3
    shuffled = mel.flip(-1)
    assert float(mel_distance(log_mel(griffin_lim(mel)), shuffled)[0]) > 6


def test_spectral_subtraction_takes_white_noise_off():
    clean, rng = torch.from_numpy(make_clip(HELD_OUT).audio)[None], np.random.default_rng(0)
    noisy = clean + 0.05 * torch.from_numpy(rng.standard_normal(clean.shape).astype(np.float32))
    want = log_mel(check_audio(clean))
    assert float(mel_distance(spectral_subtraction(noisy), want)[0]) < float(mel_distance(log_mel(check_audio(noisy)), want)[0])


# -- scores -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, heard, want", [("abc", "abc", 0), ("abc", "abd", 1), ("abc", "ab", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)])
def test_edits_are_levenshtein(said, heard, want):
    assert edits(list(said), list(heard)) == edits(list(heard), list(said)) == want


def test_phonemes_are_runs_without_slips_and_silence():
    assert phonemes_of(np.array([0, 1, 1, 1, 2, 3, 3, 0, 0, 3, 3, 16])) == ["a", "i", "i"]


def test_distance_does_not_see_the_level():
    mel = torch.randn(2, 8, 40)
    assert float(mel_distance(mel + 0.5, mel).max()) < 1e-5
    assert torch.allclose(mel_distance(mel, -mel), mel_distance(-mel, mel))


# -- bad input ----------------------------------------------------------------------------------------------------

GOOD = torch.randn(10_240)


@pytest.mark.parametrize("audio, rate, said", [
    (GOOD, 16_000, "16000 Hz: only 8000 Hz"), (torch.zeros(10_240), 8000, "silent"), (torch.randn(400), 8000, "0.05 s: give 0.16 to 10 s"),
    (torch.randn(90_000), 8000, "cut it"), (torch.full((10_240,), float("nan")), 8000, "NaN"), (torch.randn(10_240, 2), 8000, "one channel"),
    (torch.randn(1, 2, 10_240), 8000, "one channel"), ((GOOD * 1000).to(torch.int16), 8000, "divided by 32768")])
def test_bad_audio_is_one_clear_error(audio, rate, said):
    with pytest.raises(ValueError, match=said):
        check_audio(audio, rate)


def test_good_audio_comes_back_at_the_level_of_speech():
    found = check_audio(np.random.default_rng(0).standard_normal(10_300))
    assert found.shape == (1, 10_240) and float(found.square().mean().sqrt()) == pytest.approx(LEVEL, rel=0.02)
    assert torch.allclose(check_audio(GOOD * 40), check_audio(GOOD), atol=1e-6)


def wav(data, rate=8000):
    out = io.BytesIO()
    wavfile.write(out, rate, data)
    return out.getvalue()


@pytest.mark.parametrize("content, said", [
    (b"no sound", "no WAV file"), (wav(np.zeros((900, 2), np.int16)), "2 channels.*mono"), (wav(np.zeros(900, np.int16), 44_100), "44100 Hz.*resample"),
    (wav(np.zeros(9000, np.int16))[:30], "no WAV file, or a damaged one")])
def test_a_bad_wav_file_is_one_clear_error(content, said):
    with pytest.raises(ValueError, match=said):
        read_wav(content)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_wav_files_are_read_and_written(kind):
    tone = np.sin(np.arange(2000) / 5).astype(np.float32)
    held = {np.int16: tone * 32767, np.uint8: tone * 127 + 128, np.float32: tone}[kind].astype(kind)
    assert np.abs(read_wav(wav(held)) - tone).max() < 0.02
    with wave.open(io.BytesIO(wav_bytes(tone))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (8000, 1, 2, 2000)
    assert np.abs(read_wav(wav_bytes(tone)) - 0.9 * tone).max() < 0.01


@pytest.mark.parametrize("call, said", [
    (lambda: chain_of("s3s", codes()), "s3s.*n2s"), (lambda: chain_of("s2s", {"noisy_semantic": codes()["noisy_semantic"]}), "needs clean_semantic"),
    (lambda: ChainDecoder("both"), "both"), (lambda: decoder("n2s").generate({"noisy_semantic": torch.full((1, 4), 64)}), r"0\.\.63"),
    (lambda: decoder("n2s").generate(codes(CHUNK + 1)), "1 to 32"), (lambda: decoder("n2s").generate(codes(), -1.0), "temperature -1.0"),
    (lambda: decoder("s2s").generate({**codes(), "noisy_acoustic": codes(4)["noisy_acoustic"]}), "same number"),
    (lambda: AcousticCodec(width=8).decode(torch.tensor([[512]])), r"0\.\.511"), (lambda: AcousticCodec(width=8).decode(torch.tensor([1, 2])), "clips, tokens")])
def test_bad_tokens_are_one_clear_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()
