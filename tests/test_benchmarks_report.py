"""The report page: what it holds, and that it works in a browser without a network."""

import json
import logging
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.report import report

HEAD = {
    **{"record": "environment", "kind": "measured", "device": "H999", "commit": "abc", "versions": {"torch": "2"}},
    **{"copy_bandwidth": 3e12, "mode": "events"},
}


def cell(provider: str, N: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "record": "cell", "id": f"layer_norm-forward-bf16-8x{N}/{provider}", "provider": provider, "group": "hidden",
        "source": "", "operator": "layer_norm", "M": 8, "N": N, "dtype": "bf16", "pass": "forward", "status": "ok",
        "least_bytes": 100, "seconds": seconds, "q1": seconds * 0.9, "q3": seconds * 1.1, "samples": [seconds] * 9,
        "GB/s": 1e-3 / seconds, "of_copy": 0.5, "cold": True, **more,
    }  # fmt: skip


RECORDS = [
    HEAD,
    *(cell("tritonln", N, N * 1e-6) for N in (64, 1024)),
    *(cell("eager", N, 2 * N * 1e-6) for N in (64, 1024)),
    {
        "record": "cell",
        "id": "c/quack",
        "provider": "quack",
        "group": "hidden",
        "operator": "layer_norm",
        "M": 8,
        "N": 64,
    }
    | {"dtype": "bf16", "pass": "forward", "status": "missing", "reason": "not installed: pip install <quack>"},
    {"record": "cell", "id": "c/apex", "provider": "apex", "group": "hidden", "operator": "layer_norm", "M": 8, "N": 64}
    | {"dtype": "bf16", "pass": "forward", "status": "wrong", "reason": "dw: 0.5 off", "source": ""},
    {
        "record": "host",
        "provider": "tritonln",
        "pass": "forward",
        "M": 2,
        "N": 64,
        "samples": [9.0, 9.5],
        "launches": 3,
    },
    {"record": "begun", "id": "x"},
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return report(folder / "results.jsonl", folder)


def test_the_page_is_whole_in_itself(page: pathlib.Path) -> None:
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "dw: 0.5 off" in text
    assert "pip install &lt;quack&gt;" in text
    assert "measured on H999" in text


def test_plots_are_files_and_in_the_page(page: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    names = {f.name for f in page.parent.glob("*.png")}
    assert names == {"bandwidth-forward-bf16.png", "speedup-eager.png", "host.png"}
    assert page.read_text().count("data:image/png;base64,") == 3


def test_without_matplotlib_the_tables_remain(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    text = report(tmp_path / "results.jsonl", tmp_path).read_text()
    assert "matplotlib is not installed" in text
    assert '<table id="cells"' in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, as Debian's packages chromium and chromium-driver bring it."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("needs chromium and its driver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    logging.getLogger("selenium").setLevel(logging.WARNING)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_in_a_browser(browser: Any, page: pathlib.Path) -> None:
    browser.get(page.as_uri())
    assert "H999" in browser.title
    shown = "[...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden)"
    heading = "#cells th:nth-child(%d)"

    def column(index: int) -> list[str]:
        return list(browser.execute_script(f"return {shown}.map(r => r.cells[{index}].textContent)"))

    def click(index: int) -> None:
        browser.find_element("css selector", heading % (index + 1)).click()

    assert len(column(0)) == 5  # what is missing is named above the table, not in it
    click(7)  # us, numbers; the cell without one stays last
    assert column(7) == ["64", "128", "1,024", "2,048", ""]
    click(7)
    assert column(7) == ["2,048", "1,024", "128", "64", ""]
    click(0)
    assert column(0) == ["apex", "eager", "eager", "tritonln", "tritonln"]
    field = browser.find_element("id", "filter")
    field.send_keys("forward !eager !apex")
    assert column(0) == ["tritonln", "tritonln"]
    assert browser.find_element("id", "shown").text == "2 of 5 cells"
    # Every picture was decoded, and nothing was fetched or complained of.
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert (
        browser.execute_script(
            "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length"
        )
        == 0
    )
    assert browser.get_log("browser") == []
