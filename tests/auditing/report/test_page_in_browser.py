"""The page in Chromium: it fits a phone, and follows the light or dark scheme."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernelmem.auditing.text.report import render_text_page
from tests.auditing.report.pages import rendered
from tests.auditing.sample_documents import VARIANTS
from tests.auditing.text.sample_text_documents import build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def chromium(directory: Path, *arguments: str) -> str:
    quiet = "headless=new no-sandbox disable-gpu no-first-run hide-scrollbars disable-background-networking"
    options = [f"--{name}" for name in (*quiet.split(), "disable-component-update", "disable-sync")]
    command = [str(CHROMIUM), *options, f"--user-data-dir={directory / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_fits_every_variant_into_a_phone_without_sideways_scrolling(tmp_path):
    """Browser windows have a minimum width, so pages are loaded in narrow frames and measured by a script."""
    pages = {variant: rendered(variant) for variant in VARIANTS}
    pages |= {f"text-{variant}": render_text_page(build(variant)) for variant in ("small", "revealed")}
    for name, html in pages.items():
        (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
    frames = "".join(f'<iframe src="{name}.html" style="width:390px;height:844px;border:0"></iframe>' for name in pages)
    wrapper = tmp_path / "phone.html"
    wrapper.write_text(
        f"""<!doctype html>{frames}<script>
        onload = () => {{ document.title = [...document.querySelectorAll("iframe")].map(frame => {{
          const page = frame.contentDocument.documentElement;
          return [page.scrollWidth, page.clientWidth, page.scrollHeight].join(" ") }}).join(",") }}</script>""",
        encoding="utf-8",
    )
    dump = chromium(tmp_path, "--allow-file-access-from-files", "--dump-dom", wrapper.as_uri())
    found = re.search(r"<title>([\d ,]+)</title>", dump)
    assert found
    sizes = [tuple(map(int, size.split())) for size in found[1].split(",")]
    assert len(sizes) == len(pages)
    assert [(name, width) for name, (width, room, height) in zip(pages, sizes, strict=True)
            if width != room or room != 390 or height < 3000] == []  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_it_light_and_dark(tmp_path):
    page = tmp_path / "audit.html"
    page.write_text(rendered("retraining"), encoding="utf-8")
    screenshots = []
    for flags in ((), ("--blink-settings=preferredColorScheme=0",)):
        target = tmp_path / f"{len(screenshots)}.png"
        chromium(tmp_path, "--window-size=1000,1400", f"--screenshot={target}", *flags, page.as_uri())
        with Image.open(target) as image:
            screenshots.append(np.asarray(image.convert("L")).astype(float))
    light, dark = screenshots
    assert light.shape == dark.shape == (1400, 1000)
    assert np.median(light) > 230
    assert np.median(dark) < 60
    assert light.std() > 10
    assert dark.std() > 10
