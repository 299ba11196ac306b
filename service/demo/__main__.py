"""``make demo``: run the platform on this machine, train on sample pictures, estimate poses and score them.

It starts `ppl up` and uses the HTTP API like any user. The labels of the samples only score the result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn

from rich.markup import escape

from service.cli.console import counting_bar, duration, open_in_browser, out, training_progress
from service.cli.priors import print_quality
from service.client import Client, ClientError, Job, JobStatus
from service.client.connection import DEFAULT_URL
from service.client.types import ImageEstimate
from service.stack.supervisor import end_with_parent

from .results import draw_grid, estimate_all, installed_versions, read_zip, score, select_pictures

CATEGORY = "dog"
PRESET = "compact"
STEPS = 240
_GRID_PICTURES = 24
_PORT = 8000
_STOP_S = 60.0


class DemoError(RuntimeError):
    """The demo can't continue; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.demo", description="Demonstrate the whole platform.")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="folder of the data and results")
    parser.add_argument("--no-serve", action="store_true", help="exit when done instead of serving until Ctrl-C")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (%(default)s)")
    parser.add_argument("--pictures", type=int, help="number of sample pictures to train on (default: all)")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
    done = False
    try:
        out.print("Starting the stack: Valkey, two workers, the API ...")
        with _start_stack(options.folder) as (url, await_end):
            out.print(f"  page {url}/\n  API  {url}\n  docs {url}/docs")
            _demonstrate(url, options.folder, options.steps, options.pictures, serving=not options.no_serve)
            done = True
            if not options.no_serve:
                out.print(f"\nServing until Ctrl-C. [bold]See it in your browser: {url}/[/]")
                open_in_browser(f"{url}/")
                await_end()
    except (DemoError, ClientError) as error:
        out.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        out.print("Stopped." if done else "Interrupted; everything is stopped.")
        return 0 if done else 130
    return 0


@contextmanager
def _start_stack(folder: Path) -> Iterator[tuple[str, Callable[[], NoReturn]]]:
    """Run `ppl up` with its data in a folder; Ctrl-C while it stops kills it.

    Yields:
        The address of the API, and a function that waits for the end of the stack, which comes only by an error.

    Raises:
        DemoError: it could not be started, or ended; the message has the last lines of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "stack.log"
    command = [sys.executable, "-P", "-m", "service.cli", "up", "--json", "--host", "127.0.0.1"]
    command += ["--port", str(_PORT if _is_free(_PORT) else 0), "--data-root", str(folder / "data")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 the command is our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PPL_API_KEYS": ""},  # no keys on the loopback address
            start_new_session=True,  # Ctrl-C reaches only the demo, which then stops the stack
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
    assert process.stdout is not None

    def await_end(what: str = "ended unexpectedly") -> NoReturn:
        process.wait()
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-30:])
        raise DemoError(f"the stack {what}:\n{tail}")

    try:
        line = process.stdout.readline()
        if not line:
            await_end("could not be started")
        yield str(json.loads(line)["url"]), await_end
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()  # its children are killed with it
            process.wait()
        process.stdout.close()


def _demonstrate(url: str, folder: Path, steps: int, pictures: int | None, serving: bool) -> None:
    with Client(url) as client, as_file(files("service") / "samples") as samples:
        train_archive, heldout_archive = samples / "dog.zip", samples / "dog_heldout.zip"
        if pictures is not None:
            train_archive = select_pictures(train_archive, folder / "dog.zip", pictures)
        job = _train(client, train_archive, steps)
        assert job.version is not None
        train_pictures, heldout_pictures = read_zip(train_archive), read_zip(heldout_archive)
        heldout = _estimate(client, heldout_pictures, "held-out pictures")
        train = _estimate(client, train_pictures, "training pictures, to fit the scoring map")
        scores = score(train, heldout, samples / "dog_labels.json", folder / "predictions.json")

    overlay, example = folder / "overlay.png", folder / "dog.jpg"
    chosen = list(heldout)[:: max(1, len(heldout) // _GRID_PICTURES)][:_GRID_PICTURES]
    draw_grid([(heldout_pictures[name], heldout[name]) for name in chosen], overlay)
    example.write_bytes(heldout_pictures[chosen[0]])
    assert job.started_at is not None
    assert job.finished_at is not None
    seconds = (job.finished_at - job.started_at).total_seconds()
    report = {
        "error_percent": round(scores["error_percent"], 3),
        "mean_pose_percent": round(scores["mean_pose_percent"], 3),
        "train_seconds": round(seconds, 1),
        "overlay": str(overlay),
        "versions": installed_versions(),
        "quality": job.quality and job.quality.model_dump(),
        "category": CATEGORY,
        "version": job.version,
        "steps": steps,
        "train_images": len(train),
        "heldout_images": len(heldout),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _print_summary(url, report, folder, example, serving)


def _train(client: Client, archive: Path, steps: int) -> Job:
    out.print(f"\nTraining on {archive.name}: pictures of a dog, no labels; {steps} steps on this CPU.")
    if any(entry.category == CATEGORY and entry.version for entry in client.priors()):
        out.print(f"Category '{CATEGORY}' has a version already; the new one becomes the active version.")
    for earlier in client.jobs():
        if earlier.category == CATEGORY and not earlier.status.ended:
            out.print(f"Cancelling job {earlier.id} of an interrupted demo.")
            client.cancel(earlier.id)
    job = client.train(CATEGORY, archive, PRESET, {"steps": steps}, activate="always")  # also after few steps
    with training_progress() as show:
        job = client.wait(job.id, show)
    if job.status is not JobStatus.SUCCEEDED:
        reason = f": {job.error.detail}" if job.error else ""
        raise DemoError(f"the training job {job.id} {job.status}{reason}")
    print_quality(job.quality)
    return job


def _estimate(client: Client, pictures: Mapping[str, bytes], what: str) -> dict[str, ImageEstimate]:
    out.print(f"{len(pictures)} {what}")
    with counting_bar("") as update:
        return estimate_all(client, CATEGORY, pictures, lambda done: update(completed=done, total=len(pictures)))


def _print_summary(url: str, report: Mapping[str, Any], folder: Path, example: Path, serving: bool) -> None:
    ppl = Path(sys.executable).with_name("ppl")
    if ppl.is_relative_to(Path.cwd()):
        ppl = ppl.relative_to(Path.cwd())
    first, server = "", url
    if not serving:  # the stack stops now, and the next commands need one
        server, first = DEFAULT_URL, f"\n  {ppl} up --data-root {folder / 'data'}"
    elif url != DEFAULT_URL:
        first = f"\n  export PPL_URL={url}"
    out.print(
        f"""
[bold]Error on held-out pictures: {report["error_percent"]:.2f} % of the picture's side[/] \
(guessing the mean pose: {report["mean_pose_percent"]:.2f} %), trained in {duration(report["train_seconds"])}.
  poses    {report["overlay"]}
  report   {folder / "report.json"}
  page     {url}/
  API      {url}
  docs     {url}/docs

To try next{", in another terminal" if serving else ""}:{first}
  {ppl} prior {CATEGORY}
  {ppl} estimate {CATEGORY} {example} --overlay pose.png
  curl -F category={CATEGORY} -F images=@{example} {server}/estimate
With your own pictures, some hundreds of one category, the object near the middle:
  {ppl} train NAME FOLDER --follow
  {ppl} estimate NAME PICTURE --overlay pose.png"""
    )


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
