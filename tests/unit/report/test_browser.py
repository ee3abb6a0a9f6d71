"""A report in a real browser: it fits, its words are large enough, and nothing is fetched."""

import re
import shutil
import subprocess

import pytest

from softcpt.report.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width_px", [390, 1280])
def test_report_fits_the_window_in_a_browser(width_px, tmp_path, page):
    """Measured by the browser itself: a frame of that width, whose page is as wide as the frame."""
    write_page(page, tmp_path / "report.html")
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="report.html" style="border:0;width:{width_px}px;height:900px"></iframe>'
        '<p id="p"></p>'
        "<script>f.onload=()=>{const d=f.contentDocument,"
        "n=[...d.querySelectorAll('svg text')].map(t=>t.getBoundingClientRect().height);"
        "r=f.contentWindow.performance.getEntriesByType('resource').filter(e=>!e.name.startsWith('data:')),"
        "c=[...d.querySelectorAll('figure,table,img,pre,details')].filter(e=>!e.closest('.wide'))"
        ".map(e=>e.getBoundingClientRect().right);"
        "p.textContent=[d.documentElement.scrollWidth,Math.min(...n),r.length,Math.max(...c)].join(' ')}"
        "</script>"
    )
    ended = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         "--allow-file-access-from-files",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width_px + 200},1000",
         "--virtual-time-budget=10000", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    [said] = re.findall(r'<p id="p">([\d. ]+)</p>', ended.stdout)
    scroll_px, smallest_px, n_fetched, right_px = map(float, said.split())
    assert scroll_px == width_px
    assert right_px <= width_px
    assert smallest_px > 11  # of the words in figures
    assert n_fetched == 0
