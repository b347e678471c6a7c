"""The report in a real browser: nothing on its console, nothing from the network."""

import json
import re
import shutil
import subprocess

import pytest
from study_results import TASKS, analysis, comparison, sweep

from centermerge_jax.cli import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--disable-dev-shm-usage"),
)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for make in (comparison, analysis, sweep):
        (folder / f"{make.__name__}.json").write_text(json.dumps(make()))
    main(["report", str(folder), "-o", str(folder / "report.html"), "--quiet"])
    return folder / "report.html"


def opened(page, folder, *flags):
    """What a browser makes of a page: its elements, its console, what it asked for."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            f"--user-data-dir={folder / 'profile'}",
            *("--enable-logging=stderr", f"--log-net-log={log}"),
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
    # The browser's own services have hosts of their own; a page's do not.
    asked = re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]*)"', log.read_text())
    own = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
    asked = [url for url in asked if not url.split("/")[2].endswith(own)]
    return done.stdout, console, asked


def test_a_browser_shows_it_without_a_complaint_or_a_request(page, tmp_path):
    elements, console, asked = opened(page, tmp_path, "--dump-dom")
    assert console == []
    assert asked == []
    # The inline script has run: heads of tables are buttons.
    assert f'<button type="button">{TASKS[0]}</button>' in elements
    assert elements.count("<svg") == 12


def test_the_proof_can_fail(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><img src="http://127.0.0.1:9/x.png"><script>nonsense()</script>'
    )
    _, console, asked = opened(bad, tmp_path, "--dump-dom")
    assert any("nonsense is not defined" in line for line in console)
    assert asked
    assert set(asked) == {"http://127.0.0.1:9/x.png"}


SORT = """
<script>
const table = document.querySelector("table");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
const [first, mnist] = table.tHead.querySelectorAll("button");
const seen = [];
for (const button of [mnist, mnist, first]) {
  button.click();
  seen.push(names().join(";"), button.parentElement.ariaSort);
}
document.body.innerHTML = `<p id="seen">${seen.join("|")}</p>`;
</script>
"""


def test_tables_are_sorted_by_their_heads(page, tmp_path):
    copy = tmp_path / "sorted.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"{SORT}</body>"), encoding="utf-8")
    elements, console, _ = opened(copy, tmp_path, "--dump-dom")
    assert console == []
    (seen,) = re.findall(r'<p id="seen">(.*?)</p>', elements)
    down, first, up, second, by_name, third = seen.split("|")
    assert (first, second, third) == ("descending", "ascending", "ascending")
    assert down.split(";")[:3] == ["experts", "joint", "RegMean"]
    assert up.split(";")[0] == "pretrained"
    assert set(by_name.split(";")) == set(down.split(";"))


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_ground_is_that_of_the_scheme_and_the_page_fits_400_pixels(
    page, tmp_path, scheme
):
    from PIL import Image

    picture = tmp_path / "page.png"
    opened(
        page,
        tmp_path,
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        f"--screenshot={picture}",
        *("--window-size=400,3000", "--hide-scrollbars"),
    )
    with Image.open(picture) as shown:
        pixels = shown.convert("RGB")
        corner = pixels.getpixel((2, 2))
        assert corner == ((255, 255, 254) if scheme == "light" else (13, 17, 23))
        # Nothing is pushed out: the right margin is empty all the way down.
        strip = pixels.crop((pixels.width - 8, 0, pixels.width, pixels.height))
        assert strip.getcolors() == [(8 * pixels.height, corner)]
