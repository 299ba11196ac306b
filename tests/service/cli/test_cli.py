"""The command line against a small HTTP server. Each command runs in its own process."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.api_double import ApiDouble, job_json, png, problem, serving
from tests.support.cli_process import ROOT, CommandLine

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def api() -> Iterator[ApiDouble]:
    with serving(ApiDouble()) as api:
        yield api


@pytest.fixture
def ppl(api: ApiDouble, tmp_path: Path, command_line: CommandLine) -> Run:
    def run(*arguments: object, url: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return command_line.run(*arguments, cwd=tmp_path, PPL_URL=url or api.url, **more)

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "one.png"
    path.write_bytes(png())
    return path


def test_train_sends_the_folder_and_its_settings(ppl: Run, api: ApiDouble, picture: Path) -> None:
    done = ppl("train", "bird", picture.parent, "--preset", "compact", "--set", "steps=20", "--set", "seed=3")

    assert done.returncode == 0, done.stderr
    assert "validating" in done.stdout
    assert api.forms[0]["steps"] == ["20"]
    assert api.forms[0]["seed"] == ["3"]
    assert api.forms[0]["preset"] == ["compact"]


def test_train_sends_labels_and_a_prior(ppl: Run, api: ApiDouble, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image")
    (tmp_path / "p.json").write_text("{}")

    first = ppl("train", "bird", picture.parent, "--labels", "l.csv", "--prior", "p.json")
    second = ppl("train", "bird", picture.parent, "--prior-from", "bird@v1", "--no-activate")
    third = ppl("train", "bird", picture.parent, "--activate-always")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert api.forms[0]["labels"] == [("l.csv", b"image")]
    assert api.forms[0]["prior"] == [("p.json", b"{}")]
    assert api.forms[1]["prior_from"] == ["bird@v1"]
    assert third.returncode == 0
    assert [form.get("activate") for form in api.forms] == [None, ["false"], ["always"]]


def test_job_shows_what_it_learns_from_and_how_well(ppl: Run, api: ApiDouble) -> None:
    error = {"error_percent": 4.321, "mean_pose_percent": 11.0}
    evaluation = {
        "headline": error,
        "per_keypoint": error,
        "summed": {"summed_error": 123.0, "mean_pose_summed_error": 456.0},
        "train_images": 80,
        "heldout_images": 20,
        "labelled_keypoints": 7,
        "split_from": "names",
    }
    api.job_answers = [
        job_json(
            status="succeeded",
            metrics={"mode": "clips", "clips": 5, "images": 100, "held_out": 20},
            evaluation=evaluation,
        )
    ]

    said = ppl("job", "abc").stdout

    assert "5 clips, 100 frames in all, 20 of them held out" in said
    assert "4.32 %" in said
    assert "123.00 px" in said
    assert "20 held out (a fifth, by a hash of the names)" in said
    api.job_answers = [job_json(evaluation={"reason": "no keypoint is visible in both"})]
    assert "no keypoint is visible in both" in ppl("job", "abc").stdout


def test_job_and_prior_show_the_quality(ppl: Run, api: ApiDouble) -> None:
    quality = {
        "verdict": "failed",
        "advice": "the skeleton hardly moves: send boxes",
        "score": 0.04,
        "agreement": 0.04,
        "consistency": 0.05,
        "movement_percent": 0.35,
        "explained": 0.012,
        "idle_keypoints": [3, 5],
        "mean_score": 0.6,
        "pictures": 96,
    }
    api.job_answers = [job_json(status="succeeded", quality=quality)]

    said = ppl("job", "abc").stdout

    assert "quality  failed (0.04 of 1)" in said
    assert "send boxes" in said
    assert "agrees with a frozen network 4%, follows the picture 5%" in said
    assert "follows the picture 5%, moves 0.3 % of the side, explains 1.2% of the picture" in said
    assert "idle keypoints 3, 5" in said
    assert "quality  not measured" in ppl("prior", "bird").stdout


def test_history_shows_the_movement_of_the_prior(ppl: Run) -> None:
    lines = ppl("history", "bird").stdout.splitlines()

    assert lines[0] == "category bird, version v1: 2 snapshots"
    assert lines[2].split() == ["0", "-", "0-1", "(0.10)"]
    assert lines[3].split() == ["20", "0.250", "0-1", "(0.60)"]


def test_train_follow_prints_plain_lines_without_a_terminal(ppl: Run, api: ApiDouble, picture: Path) -> None:
    running = {"step": 5, "total_steps": 20, "fraction": 0.25, "eta_s": 75.0}
    api.job_answers = [
        job_json(status="queued"),
        job_json(status="running", progress=running, metrics={"total": 1.23456}),
        job_json(status="running", progress={**running, "step": 20, "eta_s": None, "stage": "evaluating"}),
        job_json(status="succeeded", version="v7"),
    ]

    done = ppl("train", "bird", picture.parent, "--follow")

    assert done.returncode == 0, done.stderr
    assert "evaluating  step 20/20" in done.stdout
    assert "running  step 5/20  loss 1.235  1:15 left" in done.stdout
    assert "version v7" in done.stdout
    assert "\x1b" not in done.stdout


def test_warnings_are_shown_before_the_training_and_at_its_end(ppl: Run, api: ApiDouble, picture: Path) -> None:
    warnings = [{"code": "varying_place", "detail": "the thing wanders [0.04]; send boxes"}]
    running = {"step": 5, "total_steps": 20, "fraction": 0.25}
    api.job_answers = [
        job_json(status="validating"),
        job_json(status="queued", warnings=warnings),
        job_json(status="running", progress=running, warnings=warnings),
        job_json(status="succeeded", version="v7", warnings=warnings),
    ]

    lines = ppl("train", "bird", picture.parent, "--follow").stdout.splitlines()

    warned = [index for index, line in enumerate(lines) if "warning: the thing wanders [0.04]; send boxes" in line]
    assert len(warned) == 2, "before the training and with the result"
    assert warned[0] < next(index for index, line in enumerate(lines) if line.startswith("running"))
    assert "(varying_place)" in ppl("job", "abc").stdout


def test_job_ids_are_not_cut_off_in_a_narrow_terminal(ppl: Run) -> None:
    done = ppl("jobs", COLUMNS="30")

    assert "a" * 12 in done.stdout
    assert "b" * 12 in done.stdout


def test_a_job_that_fails_while_followed_exits_with_an_error(ppl: Run, api: ApiDouble, picture: Path) -> None:
    failed = job_json(status="failed", error={"code": "too_few_pictures", "detail": "1 picture could be read"})
    api.job_answers = [failed]

    done = ppl("train", "bird", picture.parent, "--follow", "--json")

    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "too_few_pictures"
    assert "1 picture could be read" in ppl("job", "abc").stdout


def test_stdout_holds_only_json(ppl: Run, api: ApiDouble, picture: Path) -> None:
    runs = {
        "train": ppl("train", "bird", picture.parent, "--follow", "--json"),
        "job": ppl("job", "abc", "--json"),
        "jobs": ppl("jobs", "--json"),
        "cancel": ppl("cancel", "abc", "--json"),
        "estimate": ppl("estimate", "bird", picture, "--json"),
        "prior": ppl("prior", "bird", "--json"),
        "history": ppl("history", "bird", "--json"),
    }

    answers = {name: json.loads(done.stdout) for name, done in runs.items()}
    assert all(done.returncode == 0 and not done.stderr for done in runs.values())
    assert answers["train"]["version"] == "20261123T060000-4e5f"
    assert [job["id"][0] for job in answers["jobs"]["items"]] == ["a", "b"]
    assert answers["cancel"]["status"] == "cancelled"
    assert answers["estimate"]["images"][0]["keypoints"][0] == {"id": 0, "x": 10.5, "y": 20.25, "score": 0.9}
    assert "overlay" not in answers["estimate"]["images"][0]
    assert answers["prior"]["keypoint_names"] is None


def test_estimate_shows_a_table_and_writes_the_overlay(ppl: Run, picture: Path) -> None:
    done = ppl("estimate", "bird", picture, "--overlay", picture.with_name("out.png"))

    assert done.returncode == 0, done.stderr
    assert "64 x 48 px" in done.stdout
    assert "10.5" in done.stdout
    assert picture.with_name("out.png").read_bytes() == png()


def test_file_names_may_be_invalid_utf8_or_look_like_markup(ppl: Run, tmp_path: Path, api: ApiDouble) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/b\xff.png"))
    odd.write_bytes(png())
    (tmp_path / "[").mkdir()
    done = ppl("estimate", "bird", odd, "--overlay", "[/x].png")
    assert done.returncode == 0, done.stderr
    assert "b\ufffd.png" in done.stdout
    assert "written: [/x].png" in done.stdout
    assert ppl("train", "bird", folder).returncode == 0
    (name,) = zipfile.ZipFile(io.BytesIO(api.forms[-1]["archive"][0][1])).namelist()
    assert name == "b\ufffd.png"


def test_overlays_of_several_pictures_are_numbered(ppl: Run, picture: Path, tmp_path: Path) -> None:
    done = ppl("estimate", "bird", picture, picture, "--overlay", "out.png", "--refine-steps", "2", "--json")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out-1.png").exists()
    assert (tmp_path / "out-2.png").exists()


def test_prior_shows_what_was_learned(ppl: Run) -> None:
    done = ppl("prior", "bird")

    assert done.returncode == 0, done.stderr
    assert "2 keypoints" in done.stdout
    assert "0-1 (0.70)" in done.stdout
    assert "seconds 12.5" in done.stdout


def test_api_error_is_a_line_on_stderr_or_problem_json(ppl: Run) -> None:
    plain, machine = ppl("prior", "unicorn"), ppl("prior", "unicorn", "--json")

    assert plain.returncode == machine.returncode == 1
    assert plain.stdout == machine.stdout == ""
    assert "no category 'unicorn'" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert json.loads(machine.stderr)["code"] == "unknown_category"


def test_missing_server_error_says_how_to_start_one(ppl: Run) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    done, machine = ppl("jobs", url=url), ppl("jobs", "--json", url=url)

    assert done.returncode == machine.returncode == 1
    assert "ppl up" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(machine.stderr)["code"] == "unreachable"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "bird", "absent.zip"), "No such file"),
        (("train", "bird", ".", "--set", "steps"), "NAME=VALUE"),
        (("estimate", "bird", "absent.png"), "No such file"),
        (("estimate", "bird", "one.png", "--overlay", "no/such/folder/out.png"), "can't write"),
        (("jobs", "--url", "not an address"), "not an address"),
        (("jobs", "--url", "http://[::1"), "not a server address"),
    ],
)
def test_user_errors_are_reported_without_a_traceback(
    ppl: Run, picture: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = ppl(*arguments)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_errors_exit_with_two(ppl: Run, picture: Path) -> None:
    assert ppl("estimate", "bird").returncode == 2
    assert ppl("estimate", "bird", picture, "--refine-steps", "11").returncode == 2


def test_a_setting_refused_by_the_server_is_shown(ppl: Run, api: ApiDouble, picture: Path) -> None:
    api.train_answer = problem(422, "bad_setting", "steps is 0; it must be from 1 to 1000000")

    done = ppl("train", "bird", picture.parent, "--set", "steps=0")

    assert done.returncode == 1
    assert "steps is 0; it must be from 1 to 1000000" in done.stderr


def test_folder_of_pictures_is_estimated_and_every_is_for_videos(ppl: Run, api: ApiDouble, tmp_path: Path) -> None:
    for name in ("some/a.png", "some/below/b.png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    done = ppl("estimate", "bird", "some")
    assert done.returncode == 0, done.stderr
    assert "some/a.png" in done.stdout
    assert "some/below/b.png" in done.stdout
    refused = ppl("estimate", "bird", "empty")
    assert (refused.returncode, len(api.forms)) == (1, 1)
    assert "the folder empty holds no picture" in refused.stderr
    refused = ppl("estimate", "bird", "some", "--every", "3")
    assert refused.returncode == 1
    assert "--every chooses frames of a video" in refused.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_full_disk_under_the_output_is_reported(api: ApiDouble, more: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "service.cli", "priors", "--url", api.url, *more]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_characters_that_the_output_cannot_encode_are_replaced(ppl: Run, api: ApiDouble, tmp_path: Path) -> None:
    (tmp_path / "ünï.png").write_bytes(png())
    done = ppl("estimate", "bird", "ünï.png", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "?n?.png" in done.stdout


@pytest.mark.parametrize(
    ("words", "method"),
    [
        (["estimate", "bird", "-"], "-"),
        (["estimate", "bird", "/dev/stdin"], "/dev/stdin"),
        (["estimate", "bird"], "fifo"),
    ],
)
def test_a_picture_comes_through_a_pipe(words: list[str], method: str, api: ApiDouble, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png())
    shell = f'cat one.png | {sys.executable} -m service.cli "$@"'
    if method == "fifo":
        shell = f'{sys.executable} -m service.cli "$@" <(cat one.png)'
    environment = {**os.environ, "PPL_URL": api.url, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", shell, "bash", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    assert done.returncode == 0, done.stderr
    assert [data for _, data in api.forms[0]["images"]] == [png()]
    assert "ppl-" not in done.stdout


def test_an_archive_and_a_video_come_through_a_pipe(api: ApiDouble, tmp_path: Path) -> None:
    environment = {**os.environ, "PPL_URL": api.url, "PYTHONPATH": str(ROOT)}
    video = b"\0\0\0\x18ftypisom" + bytes(20)
    api.estimate_answer = problem(422, "bad_video", "no frame")
    for words, sent, code in ((["train", "bird", "-"], "archive", 0), (["estimate", "bird", "-"], "video", 1)):
        command = [sys.executable, "-m", "service.cli", *words]
        done = subprocess.run(command, input=video, capture_output=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == code, done.stderr
        assert [data for _, data in api.forms[-1][sent]] == [video]
