import json

import numpy as np
import pytest

from benchmarks.accuracy import runs
from benchmarks.accuracy.accuracy import main
from benchmarks.accuracy.runs import Request, run
from model.training.trainer import CHECKPOINT_FILE, Trainer

TINY = {
    "image_size": "32",
    "features": "none",
    "base_width": "8",
    "num_keypoints": "5",
    "num_banks": "6",
    "bank_size": "4",
    "token_dim": "16",
    "memory_width": "16",
    "batch_size": "4",
    "perceptual_size": "32",
    "precision": "fp32",
    "checkpoint_every": "2",
}


def request(pack_file, **other):
    return Request(**{"set_file": pack_file, "row": "ppl", "steps": 3, "options": TINY, **other})


def test_finished_run_has_every_measure_and_its_version_and_is_not_repeated(pack_file, tmp_path):
    out = tmp_path / "results"
    ((file, made),) = run(request(pack_file), [0], out)
    assert made
    result = json.loads(file.read_text())
    assert (result["row"], result["set"], result["seed"], result["steps"]) == ("ppl", "bars", 0, 3)
    assert (result["train_images"], result["heldout_images"]) == (14, 6)
    assert list(result["scores"]) == ["0", "1", "3"]
    assert result["scores"]["3"]["headline"]["error_percent"] > 0
    assert result["scores"]["0"]["whole_pose"]["error_percent"] > 0  # tip_L and tip_R are partners
    assert len(result["occlusion"][0]["errors"]) == 4
    assert 0 <= result["skeleton"]["geometric"]["recall"] <= 1
    assert result["settings"]["steps"] == 3
    clean = [result["scores"][refined]["headline"]["error_percent"] for refined in "03"]
    assert result["refinement"]["clean_change"] == pytest.approx(clean[1] - clean[0])
    assert result["prior_off"]["error_percent"] != pytest.approx(clean[0], rel=1e-6)
    assert result["seconds_measured"] > 0
    work = out / file.name.removesuffix(".seed0.json") / "seed0"
    assert (work / "version" / "weights.safetensors").exists()
    assert not (work / CHECKPOINT_FILE).exists()
    before = file.read_bytes()
    assert list(run(request(pack_file), [0], out)) == [(file, False)]
    assert file.read_bytes() == before
    other = request(pack_file, perceptual_weights=tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"made with perceptual_weights None; expected own\.pt"):
        list(run(other, [0], out))


def test_stopped_run_continues_to_the_result_of_one_that_was_not(pack_file, tmp_path, monkeypatch):
    asked = request(pack_file, steps=5)
    ((whole, _),) = run(asked, [0], tmp_path / "whole")
    step = Trainer.train_step

    def stopped(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        list(run(asked, [0], tmp_path / "parts"))
    steps = []
    monkeypatch.setattr(Trainer, "train_step", lambda self: (steps.append(self.step), step(self))[1])
    ((parts, made),) = run(asked, [0], tmp_path / "parts")
    assert made
    assert steps == [2, 3, 4]
    one, other = (json.loads(file.read_text()) for file in (whole, parts))
    assert one["scores"] == other["scores"]
    assert other["seconds_trained"] > 0


def test_trained_version_is_drawn_while_it_is_measured_and_only_once(pack_file, tmp_path, monkeypatch, capsys):
    asked = request(pack_file, steps=2)

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            list(run(asked, [0], tmp_path))
    pictures = ["pictures", str(tmp_path), "--set", str(pack_file), "--count", "5"]
    work = tmp_path / asked.group / "seed0"
    drawn = []
    for arguments in (pictures, pictures, [*pictures, "--refine-steps", "1"]):
        assert main(arguments) == 0
        drawn.append(capsys.readouterr().out.split())
    assert drawn == [[str(work / "sheet.png")], [], [str(work / "sheet.png")]]
    ((_, made),) = run(asked, [0], tmp_path)  # writes the version anew
    assert made
    assert main(pictures) == 0
    assert capsys.readouterr().out.split() == [str(work / "sheet.png")]
    assert {path.name for path in work.iterdir()} >= {"version", "sheet.png"}
    assert not (work / "version.partial").exists()


def test_minutes_become_steps_that_all_seeds_share(pack_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CALIBRATION_STEPS", 7)
    asked = request(pack_file, steps=None, minutes=0.02)
    first, second = (json.loads(file.read_text()) for file, _ in run(asked, [0, 1], tmp_path / "results"))
    assert first["steps"] == second["steps"] >= 1
    assert first["measured_pace"] > 0
    assert first["scores"]["0"] != second["scores"]["0"]
    assert first["settings"]["seed"] == 0
    assert second["settings"]["seed"] == 1


def test_autolink_is_measured_without_refinement(pack_file, tmp_path):
    ((file, _),) = run(request(pack_file, row="autolink", steps=2), [0], tmp_path)
    result = json.loads(file.read_text())
    assert list(result["scores"]) == ["0"]
    assert result["prior_off"] is None
    assert {len(row["errors"]) for row in result["occlusion"]} == {1}


def test_mean_pose_is_the_error_that_the_protocol_states(pack_file, tmp_path):
    ((file, _),) = run(Request(pack_file, "mean-pose"), [0, 1], tmp_path)
    headline = json.loads(file.read_text())["scores"]["0"]["headline"]
    assert headline["error_percent"] == pytest.approx(headline["mean_pose_percent"])


def test_unlabelled_set_is_trained_and_drawn_and_its_table_shows_losses(unlabelled_file, tmp_path, capsys):
    out = tmp_path / "results"
    ((file, _),) = run(request(unlabelled_file), [0], out)
    assert "scores" not in json.loads(file.read_text())
    assert main(["pictures", str(out), "--set", str(unlabelled_file), "--count", "5", "--refine-steps", "1"]) == 0
    sheet = capsys.readouterr().out.strip()
    assert sheet.endswith("seed0/sheet.png")
    assert np.fromfile(sheet, np.uint8).size > 10_000
    assert main(["table", str(out), "--into", str(tmp_path / "out.md")]) == 0
    assert "| reconstruction |" in (tmp_path / "out.md").read_text()


def test_command_names_what_can_not_be(pack_file, tmp_path, capsys):
    base = ["run", "--set", str(pack_file), "--row", "ppl", "--out", str(tmp_path)]
    for words, complaint in (
        ([], "give --minutes or --steps"),
        (["--steps", "2", "--set-option", "steps=3"], "--set-option replaces steps, which it can't"),
        (["--steps", "2", "--set-option", "steps"], "expected NAME=VALUE"),
        (["--steps", "2", "--set-option", "mask=3"], "unknown setting 'mask'"),
        (["--steps", "2", "--prior", str(pack_file)], "starts from no predefined prior"),
    ):
        assert main([*base, *words]) == 2
        assert complaint in capsys.readouterr().err
