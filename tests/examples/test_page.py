"""The progress page in a real browser: several bars move at once and end with the results."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import copy_example, environment, eventually, worker
from umbel.testing.servers import free_port

if shutil.which("chromedriver") is None and not os.environ.get("CI"):
    pytest.skip("chromedriver is missing: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.common.by import By


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=800,600",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_bars_move_and_end(browser: webdriver.Chrome, tmp_path: Path) -> None:
    home = copy_example("progress_page", tmp_path)
    env = environment(UMBEL_HOME=str(tmp_path / "home"), PAUSE="0.1")
    port = free_port()
    flask = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "page", "run", "--port", str(port)],
        cwd=home,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: _answers(port))
        browser.get(f"http://127.0.0.1:{port}/")
        assert browser.find_element(By.ID, "none").is_displayed()
        start = browser.find_element(By.ID, "start")
        start.click()
        eventually(lambda: "Waiting for a worker" in _texts(browser))
        with worker("longtask", "-l", "info", "-c", "3", cwd=home, env=env):
            start.click()
            start.click()
            _watch(browser)
        flask.terminate()
        flask.wait(10)
        start.click()
        eventually(lambda: "It could not be sent" in _texts(browser))
    finally:
        flask.terminate()
        flask.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _texts(browser: webdriver.Chrome) -> str:
    return " | ".join(line.text for line in browser.find_elements(By.CSS_SELECTOR, ".line"))


def _watch(browser: webdriver.Chrome) -> None:
    seen: list[set[str]] = [set(), set(), set()]
    deadline = time.monotonic() + 40
    while len(browser.find_elements(By.CSS_SELECTOR, "li.done")) < 3:
        assert time.monotonic() < deadline, browser.page_source
        for widths, bar in zip(seen, browser.find_elements(By.CSS_SELECTOR, ".bar > i"), strict=False):
            widths.add(bar.get_attribute("style") or "")
        if shot := os.environ.get("SCREENSHOT"):
            browser.save_screenshot(shot)
        time.sleep(0.1)
    assert all(widths - {"", "width: 0%;", "width: 100%;"} for widths in seen), seen
    texts = [line.text for line in browser.find_elements(By.CSS_SELECTOR, ".line")]
    assert all("Task completed! Result: 32" in text and "100%" in text for text in texts), texts
    assert not browser.find_element(By.ID, "none").is_displayed()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
