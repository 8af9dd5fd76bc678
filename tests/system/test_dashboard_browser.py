"""The dashboard in a real browser: every screen, in both themes and on a phone; nothing complains, and nothing hostile
runs. With ``SCREENSHOTS=folder`` the screens are kept as pictures."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
if shutil.which("chromedriver") is None and not os.environ.get("CI"):
    pytest.skip("chromedriver is missing: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from dashboard_support import served
from hostile import make_app
from support import eventually
from umbel.dashboard.access import Access, hash_password, read_accounts
from umbel.dashboard.measures import Trend
from umbel.dashboard.serving import Server

pytestmark = pytest.mark.timeout(300)

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'{{1234*4321}}"
#: Screens and what they say.
SCREENS = {
    "/": "Tasks per second",
    "/tasks": "Last news",
    "/workflows": "First task",
    "/workflow?root=late": "Waterfall",
    "/queues": "Waiting",
    "/queue?name=celery": "Next to run",
    "/queue?name=celery&place=scheduled": "Next to come due",
    "/workers": "Workers",
    "/worker?name=w1%40box": "did not reply",
    "/worker/stacks?name=w1%40box": "did not reply",
    "/schedules": "every 30.00 seconds",
    "/schedule?name=nightly": "Next times",
    "/schedule/new": "Preview",
    "/schedule/backfill?name=nightly": "Also those that were sent before",
    "/schedule/edit?name=nightly": "Time zone of local times",
    "/errors": "Errors",
    "/dead": "Dead letters",
    "/doctor": "settings",
    "/audit": "Audit",
    "/nothing": "no such page",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Any:
    # No brackets: the name becomes a URL.
    return make_app("browser-" + request.node.name.replace("[", "-").replace("]", ""))


@pytest.fixture
def server(app: Any) -> Iterator[Server]:
    with served(app) as server:
        yield server


def fill(server: Server, app: Any) -> None:
    """Have something to show: messages, a worker, failures, a dead letter, and hostile names everywhere."""
    live, history = server.site.live, server.site.recording.history
    assert history is not None, "it is open, and hears what comes"
    for number in range(3):
        app.send_task("echo", args=[number, HOSTILE], kwargs={HOSTILE: "x"}, queue="celery")
    app.send_task(HOSTILE, args=[HOSTILE], countdown=3600, queue="celery")
    app.send_task("echo", args=[1], queue=HOSTILE)
    for node in ("w1@box", HOSTILE):
        about = {"hostname": node, "timestamp": time.time(), "local_received": time.time(), "clock": 1}
        live.event({"type": "worker-heartbeat", "freq": 60, "active": 1, "processed": 7, "sw_ident": HOSTILE, **about})
        failed = {"uuid": HOSTILE, "exception": f"ValueError({HOSTILE!r})", "traceback": HOSTILE, "name": HOSTILE}
        live.event({"type": "task-failed", **failed, **about})
    kin = {"root_id": HOSTILE, "parent_id": HOSTILE, "name": HOSTILE, "ahead": [{"id": HOSTILE + "2", "name": HOSTILE}]}
    members = [{"uuid": f"{HOSTILE}{number}", "group_id": HOSTILE, **kin} for number in range(40)]
    for each in ({"uuid": "late", **kin}, *members):
        live.event({"type": "task-received", **about, **each})
    for name in ("pulse", HOSTILE):
        app.schedules.set(name, task=name, schedule="30s", args=[HOSTILE], kwargs={HOSTILE: HOSTILE})
    app.schedules.set("nightly", task="echo", schedule="30 2 * * *", timezone="Europe/Berlin", end="2090-01-01T00:00Z")
    for _ in range(2):
        app.schedules.run("nightly")
    app.schedules.disable("pulse")
    live.sample()
    # What is recorded is written in batches.
    eventually(lambda: len(history.tasks("").tasks) > 40)


def look(browser: webdriver.Chrome, url: str, *, dark: bool = False, phone: bool = False) -> None:
    """Open a page in a theme and at a width."""
    theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": theme})
    width, height = (390, 844) if phone else (1280, 860)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
    )
    browser.get(url)


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Return what the browser complained about since it was asked last, but for pages that are meant to be missing."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING") and "/nothing" not in entry["message"]
    ]


def text(browser: webdriver.Chrome) -> str:
    """Return what the page says; nothing while another takes its place."""
    try:
        found: str = browser.execute_script("return document.body.innerText")
    except WebDriverException:
        return ""
    return found


def pulse(browser: webdriver.Chrome) -> str:
    found: str = browser.execute_script("return document.getElementById('pulse').innerText.trim()")
    return found


def cells(browser: webdriver.Chrome) -> list[str]:
    """Return the numbers of the tables, read in one step, because they move."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('tbody td.n')].map((each) => each.textContent)"
    )
    return found


@pytest.mark.parametrize("how", ["light", "dark", "phone"])
def test_every_screen(browser: webdriver.Chrome, server: Server, app: Any, how: str) -> None:
    fill(server, app)
    complaints(browser)
    base = server.url.rstrip("/")
    look(browser, f"{base}/errors", dark=how == "dark", phone=how == "phone")
    error = browser.find_element(By.CSS_SELECTOR, "a[href*='/error?id=']").get_attribute("href")
    assert error is not None
    paths = {**SCREENS, error.removeprefix(base): "The latest"}
    for path, said in paths.items():
        look(browser, base + path, dark=how == "dark", phone=how == "phone")
        assert said in text(browser), path
        if path != "/nothing":
            eventually(lambda: pulse(browser) == "live")
        assert browser.execute_script("return window.hacked") is None, path
        assert "5332114" not in browser.title + text(browser), path
        wide, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, f"{path} is wider than the window"
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, colour.strip("rgb()").split(", "))) < 200) == (how == "dark"), (path, colour)
        if folder := os.environ.get("SCREENSHOTS"):
            name = path.partition("?")[0].strip("/").replace("/", "-") or "overview"
            browser.save_screenshot(str(Path(folder) / f"{name}-{how}.png"))
        assert complaints(browser) == [], path


def test_numbers_and_tables_move_by_themselves(browser: webdriver.Chrome, server: Server, app: Any) -> None:
    complaints(browser)
    look(browser, server.url)
    eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".uplot canvas")) == 2)
    browser.execute_script("window.same = true")
    assert browser.find_element(By.CSS_SELECTOR, "[data-tick=waiting]").text == "0"
    for _ in range(12):
        app.send_task("echo", queue="celery")
    waiting = "return document.querySelector('[data-tick=waiting]').textContent"
    eventually(lambda: browser.execute_script(waiting) == "12")
    eventually(lambda: "12" in cells(browser))
    assert browser.execute_script("return window.same"), "it was not loaded anew"
    # While somebody reads a question nothing moves under it.
    browser.get(f"{server.url}queue?name=celery")
    browser.find_element(By.XPATH, "//button[starts-with(., 'Purge')]").click()
    sheet = browser.find_element(By.CSS_SELECTOR, ".sheet:popover-open")
    assert "discards all 12 messages" in sheet.text and "umbel -A shop purge -Q celery" in sheet.text
    app.send_task("echo", queue="celery")
    time.sleep(4)
    assert sheet.is_displayed() and "all 12 messages" in sheet.text
    sheet.find_element(By.XPATH, ".//button[.='Purge']").click()
    eventually(lambda: "13 messages were discarded." in text(browser))
    assert app.broker.size("celery") == 0
    assert complaints(browser) == []


def test_keys_and_themes(browser: webdriver.Chrome, server: Server) -> None:
    complaints(browser)
    look(browser, server.url)
    eventually(lambda: pulse(browser) == "live")

    def press(keys: str) -> None:
        browser.find_element(By.TAG_NAME, "body").send_keys(keys)

    press("p")
    assert pulse(browser) == "paused"
    press("?")
    assert browser.find_element(By.ID, "keys").is_displayed()
    press(Keys.ESCAPE)
    assert not browser.find_element(By.ID, "keys").is_displayed()
    press("d")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    press("gq")
    eventually(lambda: browser.current_url.endswith("/queues"))
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark", "kept, and by the server"
    press("d")
    press("ge")
    eventually(lambda: browser.current_url.endswith("/errors"))
    press("/")
    browser.switch_to.active_element.send_keys("nothing like it", Keys.ENTER)
    eventually(lambda: "filter=nothing" in browser.current_url)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip", "the first stop of Tab"
    browser.delete_all_cookies()
    assert complaints(browser) == []


def test_it_is_read_and_used_without_scripts(browser: webdriver.Chrome, server: Server, app: Any) -> None:
    fill(server, app)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        base = server.url.rstrip("/")
        for path, said in SCREENS.items():
            look(browser, base + path)
            assert said in text(browser), path
        look(browser, base)
        assert browser.find_elements(By.CSS_SELECTOR, ".plot svg polyline")
        look(browser, f"{base}/queue?name=celery")
        browser.find_element(By.XPATH, "//button[starts-with(., 'Purge')]").click()
        browser.find_element(By.CSS_SELECTOR, ".sheet:popover-open").find_element(
            By.XPATH, ".//button[.='Purge']"
        ).click()
        eventually(lambda: "messages were discarded." in text(browser))
        assert app.broker.size("celery") == 0
        look(browser, f"{base}/schedule/edit?name=nightly")
        field = browser.find_element(By.NAME, "schedule")
        field.clear()
        field.send_keys("0 4 * * mon", Keys.ENTER)
        eventually(lambda: "It will be sent" in text(browser))
        browser.find_element(By.XPATH, "//button[.='Save']").click()
        eventually(lambda: "nightly was saved: schedule" in text(browser))
        assert app.schedules.next("nightly", count=1)[0].at.strftime("%a %H:%M") == "Mon 04:00"
        browser.find_element(By.XPATH, "//button[starts-with(., 'Run now')]").click()
        sheet = browser.find_element(By.CSS_SELECTOR, ".sheet:popover-open")
        assert "umbel -A shop schedules run nightly" in sheet.text
        sheet.find_element(By.XPATH, ".//button[.='Run now']").click()
        eventually(lambda: "nightly sent as" in text(browser))
        assert len(app.schedules.history("nightly")) == 3
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_signing_in_and_out(browser: webdriver.Chrome, app: Any) -> None:
    accounts = read_accounts(f"ann:operator:{hash_password('correct horse')}", "accounts")
    with served(app, Access(accounts=accounts, hosts=())) as server:
        look(browser, f"{server.url}queues")
        assert "/login?next=" in browser.current_url
        browser.find_element(By.NAME, "name").send_keys("ann")
        browser.find_element(By.NAME, "password").send_keys("wrong", Keys.ENTER)
        eventually(lambda: "do not fit" in text(browser))
        browser.find_element(By.NAME, "name").send_keys("ann")
        browser.find_element(By.NAME, "password").send_keys("correct horse", Keys.ENTER)
        eventually(lambda: browser.current_url.endswith("/queues"))
        eventually(lambda: pulse(browser) == "live")
        assert [each for each in complaints(browser) if "403" not in each] == []
        browser.find_element(By.XPATH, "//button[.='Sign out']").click()
        eventually(lambda: browser.current_url.endswith("/login"))
        look(browser, f"{server.url}queues")
        assert "/login" in browser.current_url


@pytest.mark.parametrize("how", ["light", "dark", "phone"])
def test_a_call_is_edited_and_a_schedule_is_backfilled(
    browser: webdriver.Chrome, server: Server, app: Any, how: str
) -> None:
    fill(server, app)
    # The page of the test before still asks for its server.
    browser.get("about:blank")
    complaints(browser)
    dark, phone, base = how == "dark", how == "phone", server.url.rstrip("/")
    sent = app.send_task("echo", args=[1, {"to": HOSTILE}, 12345678901234567890], kwargs={HOSTILE: "x"}, queue="celery")

    def seen(name: str) -> None:
        """Check what every screen promises, and keep the picture."""
        assert browser.execute_script("return window.hacked") is None, name
        assert "5332114" not in browser.title + text(browser), name
        wide, room = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= room, f"{name} is wider than the window"
        if folder := os.environ.get("SCREENSHOTS"):
            browser.save_screenshot(str(Path(folder) / f"{name}-{how}.png"))
        assert complaints(browser) == [], name

    look(browser, f"{base}/task?id={sent.id}", dark=dark, phone=phone)
    browser.find_element(By.XPATH, "//a[.='Edit and retry']").click()
    eventually(lambda: "Positional arguments" in text(browser))
    field = browser.find_element(By.NAME, "args")
    changed = (field.get_attribute("value") or "").replace("12345678901234567890", "12345678901234567891")
    browser.execute_script("arguments[0].value = arguments[1]", field, changed)
    browser.find_element(By.NAME, "countdown").send_keys("60")
    browser.find_element(By.XPATH, "//button[.='Preview']").click()
    eventually(lambda: "What is changed" in text(browser))
    lines = [each.text.strip() for each in browser.find_elements(By.CSS_SELECTOR, ".diff .was, .diff .will")]
    assert lines == ["-   12345678901234567890", "+   12345678901234567891", "+ 60"]
    seen("task-edit")
    browser.find_element(By.XPATH, "//button[.='Send it']").click()
    eventually(lambda: "Sent as " in text(browser))

    look(browser, f"{base}/schedule?name=nightly", dark=dark, phone=phone)
    assert "The week, hour by hour" in text(browser)
    browser.find_element(By.XPATH, "//summary[.='As a list']").click()
    rows = len(app.schedules.history("nightly"))
    app.schedules.run("nightly")
    eventually(lambda: len(browser.find_elements(By.XPATH, "//span[.='by hand']")) == rows + 1)
    assert "02: 1 to come" in text(browser), "it stays open while the page is kept fresh"
    seen("schedule-week")
    browser.find_element(By.XPATH, "//a[.='Backfill']").click()
    eventually(lambda: "Also those that were sent before" in text(browser))
    for name, moment in (("start", "2024-01-01"), ("end", "2024-02-01")):
        field = browser.find_element(By.NAME, name)
        field.clear()
        field.send_keys(moment)
    browser.find_element(By.XPATH, "//button[.='Preview']").click()
    eventually(lambda: "31 tasks will be sent now" in text(browser))
    seen("schedule-backfill")
    browser.find_element(By.XPATH, "//button[.='Send 31 tasks']").click()
    eventually(lambda: "was sent for 31 times" in text(browser))
    assert complaints(browser) == []


#: The queues of a shop, and how many messages wait in each.
WAITING = {"orders": 42, "mail": 318, "reports": 6}


def test_the_picture_in_the_readme(
    browser: webdriver.Chrome, server: Server, app: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``PICTURE=file`` it is kept there: ``make picture``."""
    browser.get("about:blank")
    complaints(browser)
    live, now = server.site.live, time.time()
    # As if the dashboard had been open for a while.
    monkeypatch.setattr(live.rates, "_since", 0)
    chance, waiting = random.Random(7), float(sum(WAITING.values()))
    for back in range(1, 181):
        # Seen from now: the end of a sale, the sale, a payment service that refuses for a minute, and calm.
        at, busy = now - 5 * back, 60 < back < 130
        live.rates.count("succeeded", at, round(chance.gauss(104 if busy else 58, 5)))
        live.rates.count("failed", at, round(chance.gauss(11, 2)) if 84 < back < 96 else int(chance.random() < 0.08))
        live.rates.count("retried", at, round(chance.gauss(18, 3)) if 82 < back < 98 else int(chance.random() < 0.3))
        live.rates.backlog(round(waiting), at)
        waiting = max(waiting + chance.gauss(16 if back < 70 else -22 if back < 130 else 0, 8), 40)
    for queue, count in WAITING.items():
        app.send_many([("shop.charge", [number]) for number in range(count)], queue=queue)
        trend = Trend()
        for back in range(20, 0, -1):
            trend.add(time.monotonic() - 2 * back, count + back * count // 60)
        monkeypatch.setitem(live._trends, queue, trend)
    app.send_task("shop.report", ["weekly"], queue="reports", countdown=3600)
    for number, node in enumerate(("orders@red", "orders@blue", "mail@red")):
        about = {"hostname": node, "timestamp": now, "local_received": now, "clock": number + 1}
        beat = {"freq": 60, "active": 4 - number, "processed": 18_204 - 3_977 * number, "sw_ident": "py-umbel"}
        live.event({"type": "worker-heartbeat", **beat, **about})
        for order in range(3 - number):
            told = {"uuid": f"{node}-{order}", **about}
            live.event({"type": "task-received", "name": "shop.charge", **told})
            error = f"PaymentRefused('order {7040 + order}: the card was declined')"
            live.event({"type": "task-failed", "exception": error, "traceback": "", **told})
    live.sample()
    look(browser, server.url)
    size = {"width": 1280, "height": 690, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    eventually(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".uplot canvas")) == 2)
    eventually(lambda: "366" in cells(browser) or "318" in cells(browser))
    eventually(lambda: pulse(browser) == "live")
    assert "shop.charge" in text(browser) and "PaymentRefused" in text(browser)
    file = Path(os.environ.get("PICTURE") or tmp_path / "dashboard.png")
    browser.save_screenshot(str(file))
    assert 10_000 < file.stat().st_size < 150_000
    assert complaints(browser) == []
