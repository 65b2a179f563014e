"""Rooms by image sources: exact delays and amplitudes, all images, the decay that Eyring predicts; words of tones in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cnnkit_audio.synth import rooms
from cnnkit_audio.synth.words import WORDS, Place, Sentence, Voice, draw_sentence, record
from scipy import signal

pytestmark = pytest.mark.paper("chime7-acs-asr")

ROOM, SOURCE = (5.0, 4.0, 3.0), (1.2, 1.1, 1.4)
MICROPHONES = np.array([[3.3, 2.7, 1.6], [2.0, 2.0, 1.0], [3.9, 1.1, 1.4]])


def test_direct_path_is_late_by_the_distance_and_falls_with_it() -> None:
    """Up to 0.9 of half the rate the spectrum is that of an ideal delay of r / c with the amplitude 1 / (4 pi r), to 1e-3."""
    response = rooms.room_response(ROOM, SOURCE, MICROPHONES, rate=16000, absorption=1.0)
    distance = np.linalg.norm(MICROPHONES - SOURCE, axis=1)[:, None]
    spectrum = np.fft.rfft(response, 4096)
    turn = 2 * np.pi * np.arange(spectrum.shape[1]) / 4096
    ideal = np.exp(-1j * turn * distance / rooms.SPEED * 16000) / (4 * np.pi * distance)
    band = slice(0, int(0.9 * spectrum.shape[1]))
    assert (np.abs(spectrum - ideal) / np.abs(ideal))[:, band].max() < 1e-3


def test_images_are_those_of_a_loop_over_mirrors() -> None:
    """Mirror at a wall again and again: the same places with the same number of reflections."""
    places, orders = rooms.image_sources(ROOM, SOURCE, reach=30.0, max_order=3)
    found = {tuple(place.round(6)): order for place, order in zip(places, orders.tolist(), strict=True)}
    mirrored = {SOURCE: 0}
    for order in range(1, 4):
        for place in [place for place, steps in mirrored.items() if steps == order - 1]:
            for axis, wall in itertools.product(range(3), (0, 1)):
                image = list(place)
                image[axis] = 2 * wall * ROOM[axis] - image[axis]
                mirrored.setdefault(tuple(np.round(image, 6).tolist()), order)
    assert found == {tuple(np.round(place, 6).tolist()): order for place, order in mirrored.items()}


def test_response_equals_a_sum_of_sinc_functions() -> None:
    """Image by image with a sinc at its own delay, the slow and obvious way; below 0.7 of half the rate."""
    rate, samples = 8000, 400
    response = rooms.room_response(ROOM, SOURCE, MICROPHONES[:1], rate=rate, absorption=0.3, seconds=samples / rate, max_order=2)[0]
    slow = np.zeros(len(response))
    places, orders = rooms.image_sources(ROOM, SOURCE, reach=60.0, max_order=2)
    for place, order in zip(places, orders, strict=True):
        distance = np.linalg.norm(place - MICROPHONES[0])
        late = np.arange(len(response)) - distance / rooms.SPEED * rate
        slow += 0.7 ** (order / 2) / (4 * np.pi * distance) * np.sinc(late)
    low = signal.butter(8, 0.7, output="sos")
    ours, theirs = (signal.sosfilt(low, one)[: samples - 50] for one in (response, slow))
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()


@pytest.mark.parametrize(("sides", "rt60"), [((4.0, 4.0, 4.0), 0.3), ((5.0, 4.0, 3.0), 0.25), ((5.0, 5.0, 4.0), 0.35)])
def test_decay_is_eyring_s(sides: tuple[float, float, float], rt60: float) -> None:
    """Above 100 Hz within 25 percent: sound along the longest way lives longer than in a diffuse field, most in flat rooms."""
    place = np.array(sides) * [0.62, 0.7, 0.55]
    response = rooms.room_response(sides, np.array(sides) * [0.3, 0.27, 0.4], place, rate=4000, rt60=rt60)[0]
    heard = signal.sosfilt(signal.butter(2, 100, "high", fs=4000, output="sos"), response)
    assert rooms.decay_time(heard, 4000) == pytest.approx(rt60, rel=0.25)


def test_eyring_and_sabine() -> None:
    """The inverse of each other; with little absorption Eyring's time is Sabine's, 0.161 V / (S a)."""
    assert rooms.reverberation_time(ROOM, rooms.absorption_for(ROOM, 0.4)) == pytest.approx(0.4)
    assert rooms.reverberation_time(ROOM, 0.01) == pytest.approx(0.161 * 60 / (94 * 0.01), rel=0.01)


def test_decay_of_an_exponential() -> None:
    """The measure itself: noise that falls by 60 dB in half a second."""
    noise = np.random.default_rng(0).standard_normal(8000) * 10 ** (-3 * np.arange(8000) / 4000)
    assert rooms.decay_time(noise, 8000) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("kind", rooms.ARRAYS)
def test_arrays_are_inside_and_of_their_kind(kind: str) -> None:
    """Every microphone is in the room; small arrays are small, scattered ones are not; the same seed gives the same array."""
    for seed in range(10):
        room = rooms.Room.draw(np.random.default_rng(seed))
        array, again = (rooms.draw_array(np.random.default_rng(seed), room, 8, kind) for _ in range(2))
        assert array.shape == (8, 3) and np.array_equal(array, again)
        assert (array > 0).all() and (array < room.sides).all()
        spread = np.linalg.norm(array - array.mean(0), axis=1).max()
        assert spread < 0.5 if kind in ("linear", "circular") else spread > 0.3


def test_wrong_rooms_are_refused() -> None:
    """Places outside, two decays, impossible absorption, unknown arrays."""
    with pytest.raises(ValueError, match="source"):
        rooms.room_response(ROOM, (6, 1, 1), MICROPHONES, rate=8000, rt60=0.2)
    with pytest.raises(ValueError, match="microphone"):
        rooms.room_response(ROOM, SOURCE, MICROPHONES + 4, rate=8000, rt60=0.2)
    with pytest.raises(ValueError, match="either"):
        rooms.room_response(ROOM, SOURCE, MICROPHONES, rate=8000)
    with pytest.raises(ValueError, match="absorption"):
        rooms.room_response(ROOM, SOURCE, MICROPHONES, rate=8000, absorption=0.0)
    with pytest.raises(ValueError, match="scattered"):
        rooms.draw_array(np.random.default_rng(0), rooms.Room(ROOM, 0.2), 4, "spherical")


def test_words_have_their_pitches_and_times() -> None:
    """Zero crossings of each piece of a word count its pitch; the times of a sentence are where the sound is."""
    voice = Voice(pitch=1.1, tempo=0.2, overtone=0.0)
    for word, pieces in WORDS.items():
        for piece, (first, last) in zip(np.split(voice.say(word, 8000), len(pieces)), pieces, strict=True):
            mean = 1.1 * (first if first == last else (last - first) / np.log(last / first))
            assert np.abs(np.diff(np.signbit(piece).astype(int))).sum() / 2 / 0.2 == pytest.approx(mean, abs=8)
    sentence = draw_sentence(np.random.default_rng(0), 8000, words=(3, 3))
    assert len(sentence.words) == 3 and sentence.text == " ".join(sentence.words)
    loud = np.zeros(len(sentence.sound), bool)
    for start, end in sentence.times:
        loud[round(start * 8000) : round(end * 8000)] = True
    assert np.abs(sentence.sound[~loud]).max() == 0 < np.abs(sentence.sound[loud]).max()


def test_scene_has_the_noise_that_it_states() -> None:
    """With a response of one sample the noise is what is left when the sentence is taken out."""
    sentence = draw_sentence(np.random.default_rng(1), 4000)
    place = Place(np.ones((5, 1)), "scattered")
    scene = record(np.random.default_rng(2), sentence, place, clean=2)
    assert scene.clean.sum() == 2 and np.abs(scene.sound).max() <= 0.9
    for sound, snr, clean in zip(scene.sound.astype(float), scene.snr, scene.clean, strict=True):
        gain = sound @ sentence.sound / (sentence.sound @ sentence.sound)
        noise = sound - gain * sentence.sound
        assert 10 * np.log10(((gain * sentence.sound) ** 2).mean() / (noise**2).mean()) == pytest.approx(snr, abs=0.5)
        assert (snr > 0) == clean


def test_scene_in_a_room_is_the_sentence_through_its_response() -> None:
    """Without noise to speak of: a convolution."""
    sentence = Sentence(("zero",), ((0.0, 0.2),), np.random.default_rng(0).standard_normal(300))
    place = Place.draw(np.random.default_rng(3), 4000, microphones=(3, 3), max_order=2)
    scene = record(np.random.default_rng(4), sentence, place, clean=3, clean_snr=(80, 90))
    for sound, response in zip(scene.sound, place.response, strict=True):
        through = np.convolve(sentence.sound, response)
        assert np.corrcoef(sound, through)[0, 1] > 1 - 1e-6
