"""The report as a browser shows it."""

import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from ring_ray.report import write_report
from tests.unit.test_report import TITLES, Outline, write_run

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


def test_browser_keeps_every_picture_and_sentence(page, browse):
    outline = Outline(browse(page, "--dump-dom"))
    assert sorted(outline.titles) == sorted(TITLES)
    assert outline.tags.count("svg") == len(TITLES)
    assert "Every one of the 12 steps trained exactly 1,000 response tokens" in outline.text
    assert "The ledger balanced after every step" in outline.text


def screenshot(page: Path, browse, name: str, *flags: str) -> np.ndarray:
    """RGB in 0..1 [height, width, 3]."""
    picture = page.with_name(f"{name}.png")
    browse(page, f"--screenshot={picture}", "--window-size=1200,2400", *flags)
    return matplotlib.image.imread(picture)[..., :3]


def test_browser_draws_the_curves_on_light_and_on_dark(page, browse):
    light = screenshot(page, browse, "light")
    dark = screenshot(page, browse, "dark", "--blink-settings=preferredColorScheme=0")
    for pixels in (light, dark):
        assert pixels.shape == (2400, 1200, 3)
        curve_blue = np.abs(pixels - np.array([0x3D, 0x82, 0xF6]) / 255).max(axis=-1) < 0.02
        assert curve_blue[:, :600].sum() > 500, "the left column has no curve"
        assert curve_blue[:, 600:].sum() > 500, "the right column has no curve"
    assert np.median(light) > 0.9
    assert np.median(dark) < 0.2
