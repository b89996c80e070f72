"""Formant speech: the ground truth that comes with a clip is what the clip holds."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugal.data.formant_speech import (
    CLIP_SAMPLES,
    FRAME,
    LEVEL,
    NOISES,
    PHONEMES,
    RANGES,
    SAMPLE_RATE,
    UNITS,
    WORDS,
    Speaker,
    draw_speaker,
    make_clip,
    make_noise,
    mix,
    speak,
)

MIDDLE = Speaker(120.0, 1.0, 0.0)


def spectrum(clip, letter):
    """(frequencies, mean power) of the frames that carry a phoneme."""
    frames = clip.audio.reshape(-1, FRAME)[clip.labels == UNITS.index(letter)]
    return np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE), (np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2).mean(0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_clip_and_its_truth_belong_together(seed):
    clip = make_clip(seed)
    assert clip.audio.shape == (CLIP_SAMPLES,) and clip.labels.shape == (CLIP_SAMPLES // FRAME,) and clip.audio.dtype == np.float32
    assert np.sqrt(np.mean(clip.audio**2)) == pytest.approx(LEVEL, rel=1e-3) and np.isfinite(clip.audio).all()
    assert clip.phonemes == tuple("".join(clip.words)) and set(clip.words) <= set(WORDS) and len(clip.words) >= 1
    runs = [UNITS[label] for label, before in zip(clip.labels, [0, *clip.labels]) if label != before and label]
    assert runs == [p for i, p in enumerate(clip.phonemes)]                           # every phoneme lasts some frames
    again = make_clip(seed)
    assert np.array_equal(again.audio, clip.audio) and again.speaker == clip.speaker
    assert np.all(np.abs(clip.speaker.standard()) <= 1)


def test_no_word_says_a_phoneme_twice_in_a_row_and_all_letters_are_units():
    assert len(set(WORDS)) == len(WORDS) == 32 and len(PHONEMES) == 16
    assert all(letter in PHONEMES for word in WORDS for letter in word)
    assert not [word for word in WORDS if any(a == b for a, b in zip(word, word[1:]))]
    assert set("".join(WORDS)) == set(PHONEMES)


def test_formants_and_noise_bands_stand_where_the_table_says():
    rng = np.random.default_rng(0)
    clip = speak(["ma", "Sali", "saf"], MIDDLE, rng)
    freq, power = spectrum(clip, "a")
    assert abs(freq[(freq > 500) & (freq < 1000)][power[(freq > 500) & (freq < 1000)].argmax()] - 760) < 110
    hiss = [freq[p.argmax()] for p in (np.where(freq > 2000, spectrum(clip, letter)[1], 0) for letter in "Ss")]     # above the voice that runs in
    assert abs(hiss[0] - 2500) < 500 and hiss[1] > 3200


def test_pitch_formant_factor_and_tilt_are_heard():
    def low(speaker):
        clip = speak(["ma", "nol"], speaker, np.random.default_rng(1))
        return clip, np.abs(np.fft.rfft(clip.audio * np.hanning(len(clip.audio)))), np.fft.rfftfreq(len(clip.audio), 1 / SAMPLE_RATE)
    for pitch in (100.0, 200.0):
        clip, size, freq = low(Speaker(pitch, 1.0, 0.0))
        assert pitch * 0.85 < freq[(size * (freq < 1.3 * pitch)).argmax()] < pitch * 1.05
    freq, short = spectrum(low(Speaker(100.0, 1.2, 0.0))[0], "a")
    freq, long = spectrum(low(Speaker(100.0, 0.85, 0.0))[0], "a")
    assert freq[short.argmax()] > freq[long.argmax()] + 100
    def highs(speaker):
        size, freq = low(speaker)[1:]
        return (size[freq > 2000] ** 2).sum() / (size**2).sum()
    assert highs(Speaker(100.0, 1.0, 6.0)) < 0.5 * highs(Speaker(100.0, 1.0, 0.0))


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("snr_db", [-5, 0, 15])
def test_a_mixture_has_the_ratio_asked_for(kind, snr_db):
    rng = np.random.default_rng(3)
    clean, noise = make_clip(1).audio, make_noise(kind, rng)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, rel=1e-3)
    rest = mix(clean, noise, snr_db) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(rest**2)) == pytest.approx(snr_db, abs=0.01)


def test_noises_have_their_spectra():
    rng = np.random.default_rng(4)
    def share(noise, low, high):
        power, freq = np.abs(np.fft.rfft(noise)) ** 2, np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
        return power[(freq >= low) & (freq < high)].sum() / power.sum()
    assert share(make_noise("white", rng), 2000, 4000) == pytest.approx(0.5, abs=0.03)
    assert share(make_noise("pink", rng), 0, 500) > 0.4 > share(make_noise("pink", rng), 2000, 4000)
    assert share(make_noise("hum", rng), 0, 1500) > 0.95
    voices = np.stack([make_clip(i).audio for i in range(3)])
    assert np.array_equal(make_noise("babble", np.random.default_rng(5), voices=voices), make_noise("babble", np.random.default_rng(5), voices=voices))


@pytest.mark.parametrize("call, said", [
    (lambda: speak(["hello"], MIDDLE, np.random.default_rng(0)), "hello.*give one or more of"),
    (lambda: speak([], MIDDLE, np.random.default_rng(0)), "give one or more"),
    (lambda: speak(["ma"], MIDDLE, np.random.default_rng(0), 1000), "multiple of 160"),
    (lambda: Speaker(50.0, 1.0, 0.0), "pitch_hz 50.0.*90.0 to 240.0"), (lambda: Speaker(100.0, 2.0, 0.0), "formant_scale"),
    (lambda: make_noise("rain", np.random.default_rng(0)), "rain.*white"),
])
def test_bad_input_is_one_clear_error(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_drawn_speakers_fill_the_ranges():
    rng = np.random.default_rng(0)
    drawn = [draw_speaker(rng) for _ in range(300)]
    for name, (low, high) in RANGES.items():
        values = np.array([getattr(s, name) for s in drawn])
        assert values.min() < low + 0.05 * (high - low) and values.max() > high - 0.05 * (high - low)
