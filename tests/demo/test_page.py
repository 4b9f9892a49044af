"""The page as a person sees it: served by the recipe, typed into and looked at in a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.modeling.portable.saving import save_portable
from tests.helpers.demo_pages import browser, requested, serving, wait_until

ROOT = Path(__file__).parent.parent.parent
NUMBERS = "一二三四五六七八九十"


@pytest.fixture
def models(make_model: Callable[..., Any], tmp_path: Path) -> list[str]:
    """Two models, the first with instructions."""
    first, second = make_model(), make_model(dropout=True)
    set_prompts(first, "piccolo")
    for name, model in (("first", first), ("second", second)):
        save_portable(model, tmp_path / name, create_model_card=False)
    return [str(tmp_path / "first"), str(tmp_path / "second")]


@pytest.mark.slow
def test_typing_and_sliding_in_a_browser(models: list[str], tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    texts = [f"{a}天{b}月" for a in NUMBERS for b in NUMBERS] + ["今天天气晴", "<b>猫</b>和狗"]
    (tmp_path / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    command = [sys.executable, "recipes/demo.py", *models, "--corpus", str(tmp_path / "corpus.txt")]
    command += ["--query", "山", "今天天气晴", "--instructions", "e5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        browser(tmp_path / "profile") as page,
        serving(command, ROOT, environment, tmp_path / "page.log") as url,
    ):
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        def rows() -> list[str]:
            shown: list[str] = page.execute_script(
                "return [...document.querySelectorAll('#found tbody tr')].map(row => row.innerText)"
            )
            return shown

        def marked() -> str:
            label: str = page.execute_script("return document.querySelector('#map .query text')?.textContent ?? ''")
            return label

        page.get(url)
        wait_until(rows, "the page shows nothing for the query it starts with")
        assert marked() == "山"
        heads = page.find_element(By.CSS_SELECTOR, "#found thead").text
        assert all(model in heads for model in models)
        assert "查询：" in heads and "query:" in heads, "a model that brings instructions keeps them, another has e5's"
        assert len(page.find_elements(By.CSS_SELECTOR, "#map svg")) == 2

        before = rows()
        box = page.find_element(By.CSS_SELECTOR, "#query textarea, #query input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys("今天天气晴")
        wait_until(lambda: marked() == "今天天气晴", "typing does not search")
        typed = rows()
        assert typed != before and any("今天天气晴" in row for row in typed)

        number = page.find_element(By.CSS_SELECTOR, "#dimension input[type=number]")
        assert number.get_attribute("value") == "32"
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys("8", Keys.TAB)
        wait_until(lambda: rows() != typed, "the slider does not search again")
        assert "8 / 32" in page.find_element(By.CSS_SELECTOR, "#found .facts").text

        page.find_element(By.CSS_SELECTOR, "#examples button, #examples .gallery-item").click()
        wait_until(lambda: marked() == "山", "a click at an example does not search for it")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(Keys.DELETE)
        wait_until(lambda: not rows(), "the results of an emptied box stay")
        box.send_keys("晴")
        wait_until(rows, "the box stays empty")
        whole = page.execute_script(
            "return [...document.querySelectorAll('#found .bar')].map(bar => bar.getBoundingClientRect().width)"
        )
        assert max(whole) - min(whole) < 1, "the same score has bars of different lengths in two columns"

        picture = tmp_path / "page.png"
        page.save_screenshot(str(picture))
        assert_is_drawn(picture)
        inside = page.execute_script(
            "const right = where => document.querySelector(where).getBoundingClientRect().right;"
            "return right('#found table') <= right('#found') + 1 && right('#map svg') <= window.innerWidth"
        )
        assert inside, "the table or the map reaches over its place"
        phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        reach = page.execute_script("return document.querySelector('#found table').getBoundingClientRect().right")
        assert reach <= 400, f"the table of a page of 400 pixels reaches to {reach}"
        elsewhere = {each for each in requested(page) if each.split("/")[2] != url.split("/")[2]}
        assert not elsewhere, "the page asks other hosts"
        severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe


def assert_is_drawn(picture: Path) -> None:
    """The screenshot has the bars, the numbered texts and the query in their colours."""
    from matplotlib.image import imread

    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    for colour, least in {(0x2F, 0x7D, 0x6B): 2000, (0xC9, 0x8A, 0x2B): 1000, (0xD1, 0x49, 0x5B): 50}.items():
        assert (abs(pixels - colour).max(axis=-1) < 4).sum() >= least, f"too little of {colour}"
