"""The report, opened in a browser."""

import html
import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const page = document.documentElement, wide = [...document.querySelectorAll("main *")].filter(
  part => !part.closest(".scroll") && part.getBoundingClientRect().right > innerWidth + 1);
parent.document.documentElement.dataset.probe =
  `${innerWidth} ${page.scrollWidth} ${wide.length} ${document.querySelectorAll("svg").length}`;
</script>"""


def test_the_report_needs_no_network(compared):
    text = (compared[0] / "report.html").read_text("utf-8")
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", text)
    assert "<script" not in text
    assert "<link" not in text


def test_the_report_says_what_the_terminal_said(compared):
    output, printed = compared
    text = (output / "report.html").read_text("utf-8")
    for name in ("untrained", "few-shot", "lora", "full-fine-tuning", "prompt_tuning", "cpt"):
        assert f"</span>{name}</td>" in text
    assert "left out p_tuning" not in printed
    assert text.count("<figure>") == 5


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_fits_a_phone_and_a_desk(compared, tmp_path, width):
    report = (compared[0] / "report.html").read_text("utf-8").replace("</body>", f"{PROBE}</body>")
    page = tmp_path / "page.html"  # a frame, because a window is never as narrow as a phone
    frame = f'<iframe style="border: 0" width="{width}" height="900" srcdoc="{html.escape(report)}"></iframe>'
    page.write_text(f"<!doctype html>{frame}", "utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width + 100},1000", "--dump-dom", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    inner, scrolled, wide, charts = map(int, re.search(r'data-probe="([\d ]+)"', result.stdout)[1].split())
    assert inner == width
    assert scrolled <= width
    assert wide == 0
    assert charts >= 2 + 5
