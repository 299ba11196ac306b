from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import resolve
from model.data import Batches, Clips, load_clips, natural_key, step_generator, to_tensor
from model.training.trainer import Trainer


def _changed(tiny, **values):
    return resolve("compact", {**tiny.to_dict(), **values})


def _numbers(images, batch):
    """Return the index of each picture of a batch, mirrored or not."""
    known = {picture.tobytes(): n for n, picture in enumerate(images)}
    known |= {np.ascontiguousarray(picture[:, ::-1]).tobytes(): n for n, picture in enumerate(images)}
    return [known[np.ascontiguousarray(picture).tobytes()] for picture in batch]


@pytest.fixture
def frames():
    """Ten pictures of noise: no two alike, mirrored or not."""
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype(np.uint8)


def test_reference_is_another_frame_of_the_same_clip_each_as_often(clips):
    pairs = Counter()
    belongs = Clips(clips, 10)
    for step in range(400):
        frames = np.arange(10)
        others = belongs.draw_other_frames(frames, step_generator(0, "reference", step))
        assert (clips[others] == clips[frames]).all()
        assert (others != frames).all()
        pairs.update(zip(frames.tolist(), others.tolist(), strict=True))
    possible = [(a, b) for a in range(10) for b in range(10) if a != b and clips[a] == clips[b]]
    assert set(pairs) == set(possible)
    of_five = [pairs[a, b] for a, b in possible if clips[a] == 2]
    assert min(of_five) > 60  # a hundred expected
    assert max(of_five) < 140


def test_reference_reaches_the_model_unmasked_and_belongs_to_the_picture(frames, clips, tiny):
    trainer = Trainer(frames, tiny, device="cpu", clips=clips)
    seen = []
    forward = trainer.model.forward
    trainer.model.forward = lambda *args: seen.append(args) or forward(*args)
    list(trainer.run())
    pictures = to_tensor(frames, torch.device("cpu"))
    for image, reference, _ in seen:
        (a, b) = ((batch[:, None] == pictures[None]).flatten(2).all(-1).nonzero()[:, 1] for batch in (image, reference))
        assert len(a) == len(b) == tiny.batch_size
        assert (clips[a] == clips[b]).all()
        assert (a != b).all()


def test_picture_and_reference_are_mirrored_together(frames, clips):
    batches = Batches(frames, 10, seed=0, horizontal_flip=True, clips=clips)
    mirrored = 0
    for step in range(20):
        images, references = batches.at(step), batches.references_at(step)
        for image, i, reference, j in zip(
            images, _numbers(frames, images), references, _numbers(frames, references), strict=True
        ):
            flipped = not np.array_equal(image, frames[i])
            assert flipped == (not np.array_equal(reference, frames[j]))
            mirrored += flipped
    assert 60 < mirrored < 140


def test_references_do_not_depend_on_the_step_one_starts_from(frames, clips):
    whole = Batches(frames, 4, seed=3, horizontal_flip=True, clips=clips)
    walked = [whole.references_at(step) for step in range(8)]
    fresh = Batches(frames, 4, seed=3, horizontal_flip=True, clips=clips)
    np.testing.assert_array_equal(walked[7], fresh.references_at(7))
    assert not np.array_equal(walked[6], walked[7])


def test_references_are_drawn_anew_at_every_step(frames):
    batches = Batches(frames, 10, seed=0, horizontal_flip=False, clips=np.zeros(10, np.int64))
    ahead = set()
    for step in range(20):
        image, reference = (_numbers(frames, batch) for batch in (batches.at(step), batches.references_at(step)))
        ahead.add(tuple((b - a) % 10 for a, b in zip(image, reference, strict=True)))
    assert len(ahead) == 20


def test_pictures_of_a_batch_are_those_of_a_training_on_stills(frames, clips):
    stills = Batches(frames, 4, seed=0, horizontal_flip=True)
    as_clips = Batches(frames, 4, seed=0, horizontal_flip=True, clips=clips)
    np.testing.assert_array_equal(stills.at(3), as_clips.at(3))


def test_clip_of_a_single_frame_is_refused_by_number(frames, clips, tiny):
    clips[6] = 41
    with pytest.raises(ValueError, match="clip 9 has a single frame, number 8 of the pictures"):
        Trainer(frames, tiny, device="cpu", clips=clips)


@pytest.mark.parametrize("bad", [np.zeros(9, np.int64), np.zeros((10, 1), np.int64), np.zeros(10, np.float32)])
def test_clips_of_another_shape_or_type_are_refused(frames, tiny, bad):
    with pytest.raises(ValueError, match=r"expected integers \(10,\)"):
        Trainer(frames, tiny, device="cpu", clips=bad)


def test_mode_is_what_was_given_unless_the_settings_say_otherwise(frames, clips, tiny):
    assert Trainer(frames, tiny, device="cpu").mode == "stills"
    assert Trainer(frames, tiny, device="cpu", clips=clips).mode == "clips"
    assert Trainer(frames, _changed(tiny, mode="clips"), device="cpu", clips=clips).mode == "clips"
    with pytest.raises(ValueError, match="mode is clips, but no clips are given"):
        Trainer(frames, _changed(tiny, mode="clips"), device="cpu")
    with pytest.raises(ValueError, match="mode is stills, but clips are given"):
        Trainer(frames, _changed(tiny, mode="stills"), device="cpu", clips=clips)


def test_training_on_clips_lowers_the_reconstruction_loss(images, tiny):
    clips = np.arange(10) // 5
    trainer = Trainer(images, _changed(tiny, steps=60), device="cpu", clips=clips)
    losses = [report.losses["reconstruction"] for report in trainer.run()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_numbers_in_names_count_as_numbers():
    names = ["frame_10.png", "frame_2.png", "a", "frame_02.png", "frame_1.png", "10", "9"]
    expected = ["9", "10", "a", "frame_1.png", "frame_02.png", "frame_2.png", "frame_10.png"]
    assert sorted(names, key=natural_key) == expected


def test_folders_are_clips_and_their_frames_come_in_natural_order(tmp_path):
    for clip, count in (("walk_10", 2), ("walk_2", 12)):
        (tmp_path / clip).mkdir()
        for n in range(count):
            Image.new("RGB", (20, 20), (n * 10, count, 0)).save(tmp_path / clip / f"frame_{n}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    images, clips = load_clips(tmp_path, 20)
    assert clips.tolist() == [0] * 12 + [1] * 2
    assert images[:, 10, 10, 0].tolist() == [n * 10 for n in range(12)] + [0, 10]
    assert clips.dtype == np.int64
    (tmp_path / "alone").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "alone" / "one.png")
    with pytest.raises(ValueError, match="alone has one frame; expected at least two"):
        load_clips(tmp_path, 20)
    with pytest.raises(ValueError, match="holds no picture"):
        load_clips(tmp_path / "nowhere", 20)
