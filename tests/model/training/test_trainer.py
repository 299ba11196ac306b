import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import resolve
from model.data import Batches, load_folder
from model.predictor import Predictor
from model.training.schedules import learning_rate, link_width
from model.training.trainer import Trainer, TrainingDivergedError
from model.version.tensor_files import CheckpointError


def _train(images, config, **kwargs):
    trainer = Trainer(images, config, device="cpu", **kwargs)
    reports = list(trainer.run())
    return trainer, reports


def _same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.fixture(scope="module")
def unbroken(images, tiny):
    """A finished run of the tiny model; tests leave its weights as they are."""
    return _train(images, tiny)[0]


def test_same_seed_gives_the_same_weights_and_another_seed_others(images, tiny, unbroken):
    again, _ = _train(images, tiny)
    other, _ = _train(images, resolve("compact", {**tiny.to_dict(), "seed": 1}))
    assert _same(unbroken.model, again.model)
    assert not _same(unbroken.model, other.model)


def test_stopped_and_resumed_run_equals_an_unbroken_one_bit_for_bit(images, tiny, unbroken, tmp_path):
    stopped = Trainer(images, tiny, device="cpu")
    for report in stopped.run():
        if report.step == 3:
            stopped.save_checkpoint(tmp_path)
            break
    resumed = Trainer(images, tiny, device="cpu")
    assert resumed.load_checkpoint(tmp_path)
    assert resumed.step == 3
    assert [report.step for report in resumed.run()] == [4, 5, 6]
    assert _same(unbroken.model, resumed.model)


def test_training_lowers_the_reconstruction_loss(images, tiny):
    config = resolve("compact", {**tiny.to_dict(), "steps": 60})
    _, reports = _train(images, config)
    losses = [report.losses["reconstruction"] for report in reports]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_divergence_is_an_error_that_names_loss_and_step(images, tiny):
    trainer = Trainer(images, tiny, device="cpu")
    with torch.no_grad():
        trainer.model.link_logits.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="loss is nan at step 1 of 6"):
        next(trainer.run())


def test_checkpoint_of_broken_weights_is_refused_and_the_older_one_stays(images, tiny, tmp_path):
    trainer = Trainer(images, tiny, device="cpu")
    trainer.save_checkpoint(tmp_path)
    with torch.no_grad():
        trainer.model.link_logits.fill_(float("inf"))
    with pytest.raises(TrainingDivergedError, match="link_logits is not finite"):
        trainer.save_checkpoint(tmp_path)
    assert Trainer(images, tiny, device="cpu").load_checkpoint(tmp_path)


def test_checkpoint_of_other_settings_or_damaged_is_refused(images, tiny, tmp_path):
    Trainer(images, tiny, device="cpu").save_checkpoint(tmp_path)
    other = resolve("compact", {**tiny.to_dict(), "mask_ratio": 0.5})
    with pytest.raises(CheckpointError, match="other settings: mask_ratio"):
        Trainer(images, other, device="cpu").load_checkpoint(tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        Trainer(images, tiny, device="cpu").load_checkpoint(tmp_path)


def test_loading_without_a_checkpoint_returns_false(images, tiny, tmp_path):
    assert not Trainer(images, tiny, device="cpu").load_checkpoint(tmp_path)


def test_frozen_model_gives_the_same_poses_without_normalisations(images, unbroken):
    frozen = copy.deepcopy(unbroken.model)
    frozen.freeze()
    frozen.freeze()  # idempotent
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in unbroken.model.modules())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in frozen.modules())
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert torch.equal(frozen.keypoint_prior(), unbroken.model.eval().keypoint_prior())
    ours, theirs = Predictor(frozen, "cpu").predict(images, 2), Predictor(unbroken.model, "cpu").predict(images, 2)
    np.testing.assert_allclose(ours.trajectory, theirs.trajectory, atol=1e-5)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)


def test_exported_version_predicts_what_the_trained_model_does(images, unbroken, tmp_path):
    unbroken.export(tmp_path)
    loaded, direct = Predictor.load(tmp_path, "cpu"), Predictor(unbroken.model, "cpu")
    for steps in (0, 2):
        ours, theirs = loaded.predict(images, steps, link_map=True), direct.predict(images, steps, link_map=True)
        np.testing.assert_allclose(ours.trajectory, theirs.trajectory, atol=1e-5)
        np.testing.assert_allclose(ours.link_map.astype(int), theirs.link_map, atol=1)
    assert ours.trajectory.shape == (10, 3, 5, 2)
    assert ours.link_map.shape == (10, 32, 32)


def test_export_writes_prior_and_memory_as_json(images, tiny, unbroken, tmp_path):
    unbroken.export(tmp_path, tuple("abcde"))
    prior = json.loads((tmp_path / "prior.json").read_text())
    memory = json.loads((tmp_path / "memory.json").read_text())
    assert prior["keypoint_names"] == list("abcde")
    assert np.shape(prior["keypoint_prior"]) == (5, 2)
    assert np.shape(prior["connectivity_prior"]) == (5, 5)
    weights = [link["weight"] for link in prior["links"]]
    assert len(weights) == 10
    assert weights == sorted(weights, reverse=True)
    assert np.shape(memory["use_counts"]) == (6, 4)
    assert np.sum(memory["use_counts"]) == 6 * tiny.steps * tiny.batch_size
    assert sum(prototype["count"] for prototype in memory["prototypes"]) == len(images)
    assert np.shape(memory["prototypes"][0]["keypoints"]) == (5, 2)


def test_weights_of_another_model_are_refused(images, tiny, tmp_path):
    trainer, _ = _train(images, resolve("compact", {**tiny.to_dict(), "steps": 1}))
    trainer.export(tmp_path)
    config = {**tiny.to_dict(), "num_keypoints": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="another model"):
        Predictor.load(tmp_path)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((1, 16, 16, 3), np.uint8), "expected uint8"),
        (np.zeros((1, 32, 32, 3), np.float32), "expected uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "expected uint8"),
    ],
)
def test_predictor_says_what_came_and_what_was_expected(images, tiny, bad, says):
    trainer = Trainer(images, tiny, device="cpu")
    with pytest.raises(ValueError, match=says):
        Predictor(trainer.model, "cpu").predict(bad)
    with pytest.raises(ValueError, match="refine_steps is -1"):
        Predictor(trainer.model, "cpu").predict(images, -1)


def test_pictures_of_another_size_are_refused(tiny):
    with pytest.raises(ValueError, match="expected uint8 \\(32, 32, 3\\)"):
        Trainer(np.zeros((4, 64, 64, 3), np.uint8), tiny)


def test_every_picture_comes_once_an_epoch(images):
    batches = Batches(images, 5, seed=0, horizontal_flip=False)
    epoch = np.concatenate([batches.at(2), batches.at(3)])
    assert {picture.tobytes() for picture in epoch} == {picture.tobytes() for picture in images}


def test_batch_does_not_depend_on_the_step_one_starts_from(images):
    whole = Batches(images, 4, seed=3, horizontal_flip=True)
    walked = [whole.at(step) for step in range(8)]
    np.testing.assert_array_equal(walked[7], Batches(images, 4, seed=3, horizontal_flip=True).at(7))


def test_flip_mirrors_about_half_of_the_pictures(images):
    plain = Batches(images, 10, seed=0, horizontal_flip=False)
    flipped = Batches(images, 10, seed=0, horizontal_flip=True)
    mirrored = 0
    for step in range(20):
        for a, b in zip(plain.at(step), flipped.at(step), strict=True):
            assert np.array_equal(a, b) or np.array_equal(a[:, ::-1], b)
            mirrored += not np.array_equal(a, b)
    assert 60 < mirrored < 140


def test_schedules_are_counted_in_steps(tiny):
    config = resolve("compact", {**tiny.to_dict(), "steps": 100})
    assert learning_rate(config, 0) == pytest.approx(1e-3)
    assert learning_rate(config, 50) == pytest.approx(5e-4)
    assert learning_rate(config, 100) == pytest.approx(0)
    assert link_width(config, 0) == pytest.approx(config.link_width_start)
    assert link_width(config, 50) == pytest.approx(config.link_width)
    assert link_width(config, 99) == pytest.approx(config.link_width)


def test_folder_of_pictures_is_padded_to_squares_with_grey(tmp_path):
    from PIL import Image

    (tmp_path / "deep").mkdir()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "deep" / "wide.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (loaded,) = load_folder(tmp_path, 20)
    assert loaded[10, 10].tolist() == [255, 0, 0]
    assert loaded[0, 10].tolist() == [128, 128, 128]
    with pytest.raises(ValueError, match="holds no picture"):
        load_folder(tmp_path / "empty", 20)


class _Spy:
    """Wraps a method and records its calls."""

    def __init__(self, method):
        self.method, self.calls = method, []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.method(*args, **kwargs)


def _changed(tiny, **values):
    return resolve("compact", {**tiny.to_dict(), **values})


def test_model_sees_the_picture_and_rebuilds_it_from_a_masked_one(images, tiny):
    trainer = Trainer(images, tiny, device="cpu")
    trainer.model.forward = spy = _Spy(trainer.model.forward)
    next(trainer.run())
    (image, reference, width), _ = spy.calls[0]
    hidden = reference.eq(0).all(dim=1)
    assert 0.5 < hidden.float().mean() < 0.95
    assert torch.equal(reference.permute(0, 2, 3, 1)[~hidden], image.permute(0, 2, 3, 1)[~hidden])
    assert width == pytest.approx(tiny.link_width_start)


def test_schedules_reach_the_optimiser_and_the_link_map(images, tiny):
    trainer = Trainer(images, tiny, device="cpu")
    trainer.model.forward = spy = _Spy(trainer.model.forward)
    rates = [trainer.optimizer.param_groups[0]["lr"] for _ in trainer.run()]
    assert rates == pytest.approx([learning_rate(tiny, step) for step in range(tiny.steps)])
    widths = [args[2] for args, _ in spy.calls]
    assert widths == pytest.approx([link_width(tiny, step) for step in range(tiny.steps)])
    assert widths[0] > widths[-1]


def test_only_matrices_decay(images, tiny):
    trainer = Trainer(images, _changed(tiny, weight_decay=0.5), device="cpu")
    decayed, plain = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    assert min(p.ndim for p in decayed["params"]) > 1
    assert any(p is trainer.model.link_logits for p in plain["params"])
    count = len(decayed["params"]) + len(plain["params"])
    assert count == len(list(trainer.model.parameters()))


def test_total_is_the_weighted_sum_of_the_losses(images, tiny):
    config = _changed(tiny, boundary_weight=3.0, link_regularization_weight=2.0)
    trainer = Trainer(images, config, device="cpu")
    with torch.no_grad():  # far enough outside for a boundary loss
        trainer.model.regressor.affine[-1].bias.fill_(30.0)
    losses = next(trainer.run()).losses
    assert losses["boundary"] > 1
    expected = losses["reconstruction"] + 3 * losses["boundary"] + 2 * losses["link_regularization"] + losses["memory"]
    assert losses["total"] == pytest.approx(expected, rel=1e-5)


def test_losses_of_hidden_parts_count_with_their_weights_from_their_start_on(images, tiny):
    config = _changed(tiny, occlusion_weight=5.0, refinement_weight=7.0, occlusion_start=0.5, link_width=1e-3, steps=6)
    reports = list(Trainer(images, config, device="cpu").run())
    assert ["occlusion" in report.losses for report in reports] == [False] * 3 + [True] * 3
    losses = reports[-1].losses
    expected = losses["reconstruction"] + config.boundary_weight * losses["boundary"] + losses["memory"]
    expected += 5 * losses["occlusion"] + 7 * losses["refinement"]
    assert losses["occlusion"] > 0
    assert losses["refinement"] > 0
    assert losses["total"] == pytest.approx(expected, rel=1e-5)


def test_autolink_has_no_losses_of_hidden_parts(images, tiny):
    config = _changed(tiny, method="autolink", occlusion_weight=1.0, refinement_weight=1.0, occlusion_start=0.0)
    assert "occlusion" not in next(Trainer(images, config, device="cpu").run()).losses


def test_memory_settings_reach_the_memory(images, tiny):
    trainer = Trainer(images, _changed(tiny, memory_decay=0.25, revive_after=7), device="cpu")
    trainer.model.memory.update = spy = _Spy(trainer.model.memory.update)
    next(trainer.run())
    assert (spy.calls[0][1]["decay"], spy.calls[0][1]["revive_after"]) == (0.25, 7)


@pytest.mark.parametrize("head", ["affine", "residual"])
def test_resume_is_exact_with_bf16_flips_and_revival(images, tiny, tmp_path, head):
    config = _changed(tiny, precision="bf16", horizontal_flip=True, revive_after=2, head=head)
    unbroken, _ = _train(images, config)
    stopped = Trainer(images, config, device="cpu")
    for report in stopped.run():
        if report.step == 4:
            stopped.save_checkpoint(tmp_path)
            break
    resumed = Trainer(images, config, device="cpu")
    assert resumed.load_checkpoint(tmp_path)
    list(resumed.run())
    assert _same(unbroken.model, resumed.model)


def test_export_on_the_way_changes_nothing_of_the_run(images, tiny, unbroken, tmp_path):
    trainer = Trainer(images, tiny, device="cpu")
    for report in trainer.run():
        if report.step == 2:
            trainer.export(tmp_path)
            Predictor(trainer.model, "cpu").predict(images)
    assert _same(unbroken.model, trainer.model)


def test_checkpoint_of_another_release_is_refused_by_name(images, tiny, tmp_path):
    from model.version import tensor_files

    Trainer(images, tiny, device="cpu").save_checkpoint(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors, facts = tensor_files.load(path)
    for broken, names in (
        ((tensors, {**facts, "config": {**facts["config"], "later_setting": 1}}), "later_setting"),
        (({k: v for k, v in tensors.items() if "link_logits" not in k}, facts), "link_logits"),
        ((tensors, {"config": facts["config"]}), "step"),
    ):
        tensor_files.save(path, *broken)
        with pytest.raises(CheckpointError, match=names):
            Trainer(images, tiny, device="cpu").load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "strange",
    [
        {"model.memory.sums": torch.zeros(2)},
        {"optimizer.0.exp_avg": torch.zeros(2)},
        {"optimizer.999.exp_avg": torch.zeros(2)},
        {"optimizer.first": torch.zeros(2)},
        {"history.link_weights": None},
    ],
    ids=lambda strange: next(iter(strange)),
)
def test_checkpoint_that_does_not_fit_changes_nothing(images, tiny, tmp_path, strange):
    from model.version import tensor_files

    saved = Trainer(images, tiny, device="cpu")
    next(saved.run())
    saved.save_checkpoint(tmp_path)
    tensors, facts = tensor_files.load(tmp_path / "checkpoint.safetensors")
    fitting = {name: tensor for name, tensor in (tensors | strange).items() if tensor is not None}
    tensor_files.save(tmp_path / "checkpoint.safetensors", fitting, facts)
    trainer = Trainer(images, tiny, device="cpu")
    with pytest.raises(CheckpointError, match="another release"):
        trainer.load_checkpoint(tmp_path)
    assert trainer.step == 0
    assert _same(trainer.model, Trainer(images, tiny, device="cpu").model)
    assert not trainer.optimizer.state_dict()["state"]


def test_link_map_of_a_prediction_is_255_where_the_strongest_link_lies(images, tiny):
    trainer = Trainer(images, tiny, device="cpu")
    predictor = Predictor(trainer.model, "cpu")
    drawn = predictor.predict(images, link_map=True).link_map
    exact = trainer.model.draw_links(torch.from_numpy(predictor.predict(images).keypoints), 32).detach()
    strongest = trainer.model.link_weights.max().item()
    np.testing.assert_allclose(drawn, exact.squeeze(1).numpy() / strongest * 255, atol=0.51)


class _NoHostReads(TorchDispatchMode):
    """Forbid the operations by which the host waits for a GPU's results."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        masks = (aten.index, aten.index_put, aten.index_put_)  # they look for a mask's elements
        by_mask = func.overloadpacket in masks and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or func.overloadpacket in (aten._local_scalar_dense, aten.nonzero):
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "autolink"},
        {"augmentation": 0.5, "horizontal_flip": True},
        {"features": "efficientnet_lite0", "steps": 20},  # with clusters: there are enough pictures
    ],
)
def test_a_training_step_never_reads_a_result_on_the_host(images, tiny, changes):
    config = replace(tiny, occlusion_start=0.0, **changes)
    trainer = Trainer(np.tile(images, (4, 1, 1, 1)), config, device="cpu")
    assert (trainer.model.regressor.clusters is not None) == ("features" in changes)
    for _ in range(2):  # the first one fills the memory
        with _NoHostReads():
            trainer.train_step()
        trainer.step += 1


def test_the_guard_of_the_step_notices_a_read_on_the_host():
    with _NoHostReads(), pytest.raises(AssertionError, match="wait for the device"):
        torch.ones(1).item()
    with _NoHostReads(), pytest.raises(AssertionError, match="wait for the device"):
        torch.ones(3)[torch.tensor([True, False, True])]
