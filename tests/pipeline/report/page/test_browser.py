"""The page in a real browser: nothing in its console, videos that play, no sideways scrolling."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from pages.hostile_project import Project

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-logging=stderr",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",  # keeps it open until it is ended
    "--window-size=1400,800",
)

PATIENCE_S = 240

PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message)));
addEventListener("securitypolicyviolation", event => errors.push("policy: " + event.blockedURI));
addEventListener("load", async () => {
  const videos = [...document.querySelectorAll("video")];
  const played = videos.map(video => new Promise(done => {
    video.ontimeupdate = () => video.currentTime > 0.2 && done();
    video.play().catch(error => { errors.push("play: " + error); done(); });
  }));
  await Promise.all(played);
  const page = document.documentElement;
  const found = {
    videos: videos.map(video => [video.duration, video.currentTime, video.videoWidth]),
    images: [...document.images].map(image => image.naturalWidth),
    width: innerWidth,
    overflow: page.scrollWidth - page.clientWidth,
    title: document.title,
    errors,
  };
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
});
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


class Served(ThreadingHTTPServer):
    """A page, and a frame of some width that holds it; keeps what the page's probe found."""

    daemon_threads = True

    def __init__(self, page: str, width_px: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        frame = f'<iframe src="/page" width="{width_px}" height="700" style="border: 0"></iframe>'
        self.contents = {"/": frame, "/page": page}
        self.found: dict[str, Any] = {}
        self.answered = Event()


class Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        content = self.server.contents.get(self.path, "").encode()
        self.send_response(200 if content else 204)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.answered.set()

    def log_message(self, *_: object) -> None:
        """A test prints nothing."""


@contextmanager
def serving(page: str, *, width_px: int) -> Iterator[Served]:
    """While this lasts, the page is served with the probe in it, which its policy then allows."""
    allowed = "default-src 'none'; script-src 'unsafe-inline'; connect-src 'self';"
    probed = page.replace("default-src 'none';", allowed).replace("</title>", "</title>" + PROBE, 1)
    with Served(probed, width_px) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def opened(served: Served, profile: Path) -> tuple[dict[str, Any], list[str]]:
    """Findings of the probe, and the lines of the browser's console."""
    address = f"http://127.0.0.1:{served.server_port}/"
    with profile.with_suffix(".log").open("w+") as log:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            assert served.answered.wait(PATIENCE_S), f"no answer: {profile.with_suffix('.log').read_text()}"
        finally:
            browser.terminate()
            browser.wait(timeout=PATIENCE_S)
        log.seek(0)
        return served.found, [line for line in log if "CONSOLE" in line]


@pytest.mark.parametrize("width_px", [360, 1280])
def test_the_page_works_in_a_browser(project: Project, tmp_path: Path, width_px: int) -> None:
    with serving(project.page, width_px=width_px) as served:
        found, console = opened(served, tmp_path / "profile")
    assert found["width"] == width_px
    assert found["overflow"] == 0
    assert found["errors"] == []
    assert console == []
    assert len(found["videos"]) == 3
    for duration_s, played_s, video_width_px in found["videos"]:
        assert duration_s > 2
        assert played_s > 0.2
        assert video_width_px == 600
    assert min(found["images"]) > 0
    assert found["title"].startswith("ThinkJEPA: ")
