"""The report as a browser shows it."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from ring_ray.report import write_report
from ring_ray.report.groups import PALETTE
from tests.unit.run_directories import write_run, write_sweep
from tests.unit.test_report import OVERLAID, PER_RUN, TITLES, Outline

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE = 390  # CSS pixels across


@pytest.fixture
def browse(tmp_path):
    """Opens a page in a fresh profile of headless Chromium and returns what that prints."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium is missing: run `make test`, or install it (apt install chromium)"

    def run(page: Path, *flags: str) -> str:
        command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    return run


@pytest.fixture
def page(tmp_path):
    output = tmp_path / "report.html"
    write_report([write_run(tmp_path / "run")], output)
    return output


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    directory = write_sweep(tmp_path_factory.mktemp("sweep"), steps=40)
    write_report([directory], directory / "report.html")
    return directory / "report.html"


def test_browser_keeps_every_picture_and_sentence(page, browse):
    outline = Outline(browse(page, "--dump-dom"))
    assert sorted(outline.titles) == sorted(TITLES)
    assert outline.tags.count("svg") == len(TITLES)
    assert "Every one of the 12 steps trained exactly 1,000 response tokens" in outline.text
    assert "The ledger balanced after every step" in outline.text


def test_browser_keeps_every_picture_of_a_comparison(comparison, browse):
    outline = Outline(browse(comparison, "--dump-dom"))
    assert sorted(outline.titles) == sorted(OVERLAID + 2 * PER_RUN)
    assert outline.tags.count("svg") == len(OVERLAID + 2 * PER_RUN)
    assert "6 runs compared" in outline.text


def screenshot(page: Path, browse, name: str, *flags: str) -> np.ndarray:
    """RGB in 0..1 [height, width, 3]."""
    picture = page.with_name(f"{name}.png")
    browse(page, f"--screenshot={picture}", "--window-size=1200,2400", *flags)
    return matplotlib.image.imread(picture)[..., :3]


@pytest.mark.parametrize(("report", "colors"), [("page", PALETTE[:1]), ("comparison", PALETTE[:2])])
def test_browser_draws_the_curves_on_light_and_on_dark(report, colors, request, browse):
    page = request.getfixturevalue(report)
    light = screenshot(page, browse, "light")
    dark = screenshot(page, browse, "dark", "--blink-settings=preferredColorScheme=0")
    for pixels in (light, dark):
        assert pixels.shape == (2400, 1200, 3)
        for color in colors:
            drawn = np.abs(pixels - np.array(list(bytes.fromhex(color[1:]))) / 255).max(axis=-1) < 0.02
            assert drawn[:, :600].sum() > 500, f"the left column has no {color} curve"
            assert drawn[:, 600:].sum() > 500, f"the right column has no {color} curve"
    assert np.median(light) > 0.9
    assert np.median(dark) < 0.2


@pytest.mark.parametrize("report", ["page", "comparison"])
def test_a_phone_never_scrolls_sideways(report, request, browse, tmp_path):
    page = request.getfixturevalue(report).read_text().replace("<details>", "<details open>")
    phone = tmp_path / "phone.html"  # a frame, since a window of headless Chromium has a least width
    phone.write_text(
        f'<iframe id="phone" width="{PHONE}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        "<script>onload = () => { document.title = phone.contentDocument.documentElement.scrollWidth }</script>"
    )
    (width,) = re.findall(r"<title>(\d+)</title>", browse(phone, "--dump-dom"))
    assert 0 < int(width) <= PHONE
