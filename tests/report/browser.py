"""A page as a browser shows it: headless Chromium, without a driver; what the page's own scripts find comes as its DOM."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# In the page: errors are kept from the start; at the end the first table is sorted and everything is measured.
EARLY = "<script>window.errors = []; window.onerror = text => errors.push(text)</script>"
LATE = """<script>addEventListener("load", () => {
  const table = document.querySelector("table.sortable"), read = () => [...table.tBodies[0].rows].map(
      row => [...row.cells].map(cell => cell.textContent.trim()));
  const found = {before: read(), after: []};
  for (const button of table.querySelectorAll("th button")) { button.click(); found.after.push(read()); button.click(); found.after.push(read()) }
  found.wide = document.documentElement.scrollWidth; found.room = innerWidth;
  found.asked = performance.getEntriesByType("resource").map(one => one.name);
  found.ink = getComputedStyle(document.body).color; found.errors = errors;
  found.broken = [...document.images].filter(one => !one.naturalWidth).length;
  parent.postMessage(JSON.stringify(found), "*") })</script>"""
FRAME = """<!doctype html><pre id="found"></pre><iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("message", told => document.getElementById("found").textContent = told.data)</script>"""


def browser():
    """The browser's path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed: {', '.join(NAMES)}")
    return found


def look(page, place, width, dark=False):
    """What a page does at a width in pixels: its table sorted by each column, errors, requests, overflow."""
    text = page.read_text()
    (place / "inner.html").write_text(text.replace("<head>", "<head>" + EARLY).replace("</body>", LATE + "</body>"))
    (place / "outer.html").write_text(FRAME.format(width=width))
    told = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}"]
    told += ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom"]
    told += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*told, f"file://{place / 'outer.html'}"], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    assert found[1], f"the page told nothing: {done.stderr[-2000:]}"
    return json.loads(unescape(found[1])) | {
        "console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    }
