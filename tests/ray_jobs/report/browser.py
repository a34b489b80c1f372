"""A headless browser that opens a page and tells what it did."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs chromium to open the report")


def opened(page: str, folder: Path, script: str = "") -> tuple[str, list[str], list[str]]:
    """Return the DOM, the console's lines and the addresses asked for, after a headless browser has opened the page."""
    path = folder / "page.html"
    path.write_text(f"<script>{script}</script></body>".join(page.rsplit("</body>", 1)), "utf-8")
    log = folder / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
        "--disable-extensions",
        "--enable-logging=stderr",
    ]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=1200,900", "--virtual-time-budget=3000"]
    done = subprocess.run([chromium(), *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(
        r'"initiator":"(?!not an origin)[^\n]*?"url":"(https?://[^"]+)"', log.read_text("utf-8")
    )  # the page's, not the browser's
    return done.stdout, console, asked
