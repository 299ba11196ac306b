"""What tests in Debian's chromium share: where it is, drawing on the page with the mouse, and playing a video."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NEEDS_BROWSER = [
    pytest.mark.integration,
    pytest.mark.browser,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in Linux's /proc"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)"),
]
_PAGE = b"""<!doctype html><video src="/video.mp4" muted playsinline></video><script>
const video = document.querySelector("video")
const report = error => fetch("/report", {method: "POST", body: JSON.stringify({error, time_s: video.currentTime,
  width: video.videoWidth, height: video.videoHeight, duration_s: video.duration})})
video.onended = () => report(null)
video.onerror = () => report(video.error.message || "error " + video.error.code)
video.play().catch(error => report(String(error)))
</script>"""


def play(video: Path, folder: Path, timeout_s: float = 60.0) -> dict[str, Any]:
    """Play a video to its end; return "error", "time_s", "width", "height" and "duration_s" as the page reports them.

    Args:
        folder: for the browser's profile.

    Raises TimeoutError if the page reports nothing.
    """
    report: dict[str, Any] = {}
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_video = self.path == "/video.mp4"
            body = video.read_bytes() if is_video else _PAGE
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4" if is_video else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            report.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_message(self, *_: object) -> None:
            pass

    assert CHROMIUM is not None
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"]
        quiet = ["--no-first-run", "--disable-background-networking", f"--user-data-dir={folder}"]
        command = [CHROMIUM, *options, *quiet, "--autoplay-policy=no-user-gesture-required", address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                if not done.wait(timeout_s):
                    raise TimeoutError(f"the page reported nothing within {timeout_s:g} s")
            finally:
                browser.kill()
                server.shutdown()
    return report


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a box on the picture; places are shares of its sides."""
    page.locator(".stage").scroll_into_view_if_needed()
    frame = page.locator(".stage").bounding_box()
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=3)
    page.mouse.up()


def corners(page: Any) -> list[tuple[float, float]]:
    """Return where the corners of the boxes on the picture are drawn, as shares of its sides."""
    places = page.locator(".stage svg > g:last-child circle").evaluate_all(
        """circles => circles.map((circle) => {
          const frame = circle.closest(".stage").getBoundingClientRect(), own = circle.getBoundingClientRect();
          return [(own.x + own.width / 2 - frame.x) / frame.width, (own.y + own.height / 2 - frame.y) / frame.height];
        })"""
    )
    return [(x, y) for x, y in places]
