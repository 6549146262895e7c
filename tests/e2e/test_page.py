"""The live page in a real browser: it shows what happens, complains about nothing, and asks nobody else."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from headrace.model import Reject
from headrace.serve.app import create_app
from headrace.serve.server import Server
from tests.e2e.browser import CHROMIUM, Page, page
from tests.e2e.demo_page import fill, second
from tests.integration.small_runtime import SmallRuntime, measurements

# Without a browser these can't run; in CI that is a failure, not a skip (`make test` installs one where it can).
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium: apt-get install chromium"
)

TEXT = "document.getElementById({!r}).textContent"
ROWS = "document.querySelectorAll('#{} tbody tr').length"


class Site:
    """A runtime with some minutes of history that grows every second, and its server, which can be taken away."""

    def __init__(self) -> None:
        self.runtime = SmallRuntime()
        self._random = fill(self.runtime, 60)
        self.port = 0
        self.start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._grow)
        self._thread.start()

    def start(self) -> None:
        self._server = Server(create_app(self.runtime), "127.0.0.1", self.port)
        self._server.start()
        self.port = self._server.port

    def stop(self) -> None:
        self._server.stop()

    def _grow(self) -> None:
        while not self._stop.wait(1.0):
            second(self.runtime, self.runtime.clock.now_us(), self._random)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.stop()
        self.runtime.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with page() as found:
        yield found


@pytest.fixture
def tab(browser: Page) -> Page:
    browser.call("Page.navigate", url="about:blank")
    browser.requests.clear()
    browser.complaints.clear()
    return browser


def opened(tab: Page, site: Site, path: str = "/", *, width: int = 1280, dark: bool = False) -> None:
    tab.open(site.url + path, width=width, dark=dark)
    if path == "/":
        tab.wait(ROWS.format("windows-table") + " > 10")
        tab.wait(ROWS.format("dead-table") + " >= 1")
        tab.wait("document.querySelectorAll('canvas[aria-label*=busy]').length == 1")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_is_live_within_its_width_and_asks_nobody_else(
    tab: Page, site: Site, width: int, dark: bool
) -> None:
    opened(tab, site, width=width, dark=dark)
    assert tab.value(TEXT.format("health-text")) == "Healthy"
    assert tab.value("document.getElementById('banner').hidden")
    assert "laptop" in tab.value(TEXT.format("host-name"))
    drawn = "[...document.querySelectorAll('canvas')].map(c => c.toDataURL()).join()"
    before = tab.value(drawn)
    tab.wait(f"({drawn}) !== {before!r}")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.complaints == []
    assert tab.requests
    for request in tab.requests:
        assert request.split("/")[2] == f"127.0.0.1:{site.port}", request


def test_everything_has_a_name_for_those_who_do_not_see_it(tab: Page, site: Site) -> None:
    opened(tab, site)
    assert tab.value("document.documentElement.lang") == "en"
    assert tab.value("document.querySelectorAll('h1').length") == 1
    for part in ("header", "nav[aria-label]", "main", "footer"):
        assert tab.value(f"document.querySelectorAll({part!r}).length") == 1
    assert tab.value("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent)")
    assert tab.value(
        "[...document.querySelectorAll('section')].every(s => s.getAttribute('aria-label') || s.getAttribute('aria-labelledby'))"
    )
    assert tab.value("[...document.querySelectorAll('input, select')].every(i => i.closest('label'))")
    assert tab.value("[...document.querySelectorAll('img')].every(i => i.hasAttribute('alt'))")
    tab.wait(
        "[...document.querySelectorAll('canvas')].every(c => (c.getAttribute('aria-label') || '').includes('five minutes'))"
    )
    assert tab.value(
        "[...document.querySelectorAll('button')].every(b => b.textContent || b.getAttribute('aria-label'))"
    )


def test_the_windows_are_filtered_and_sorted(tab: Page, site: Site) -> None:
    opened(tab, site)
    tab.value(
        "(i => { i.value = 'sensor-042 humid'; i.dispatchEvent(new Event('input')); })(document.getElementById('windows-filter'))"
    )
    assert tab.value(ROWS.format("windows-table")) == 1
    assert tab.value("document.querySelector('#windows-table tbody tr').cells[0].textContent") == "sensor-042"
    tab.value(
        "(i => { i.value = 'no such thing'; i.dispatchEvent(new Event('input')); })(document.getElementById('windows-filter'))"
    )
    assert "Nothing fits" in tab.value("document.querySelector('#windows-table tbody').textContent")


def test_names_from_outside_stay_text(tab: Page, site: Site) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\">"
    now_us = site.runtime.clock.now_us()
    site.runtime.append("measurements", measurements([evil], evil, [1.0], [now_us]))
    site.runtime.put_aside([Reject(evil.encode(), evil, evil)], "events")
    opened(tab, site)
    tab.wait("document.getElementById('dead-table').textContent.includes('onerror')")
    assert tab.value("document.title") == "headrace"
    assert tab.value("document.querySelectorAll('td img').length") == 0
    assert tab.complaints == []


def test_a_source_is_stopped_and_started_from_the_page(tab: Page, site: Site) -> None:
    opened(tab, site)
    click = "[...document.querySelectorAll('#sources-table button')].find(b => b.dataset.source === 'fleet').click()"
    tab.wait("document.querySelectorAll('#sources-table button').length == 2")
    tab.value(click)
    tab.wait("document.querySelector('#sources-table [aria-label=\"Start fleet\"]') !== null")
    assert site.runtime.running["fleet"] is False
    tab.value(click)
    tab.wait("document.querySelector('#sources-table [aria-label=\"Stop fleet\"]') !== null")
    assert site.runtime.running["fleet"] is True


def test_a_lost_connection_is_said_and_comes_back_by_itself(tab: Page, site: Site) -> None:
    opened(tab, site)
    points = "document.querySelector('canvas[aria-label*=busy]').getAttribute('aria-label')"
    site.stop()
    tab.wait("!document.getElementById('banner').hidden")
    tab.wait(TEXT.format("banner") + ".includes('Connection lost. Last data')")
    time.sleep(random.uniform(0, 1))
    site.start()
    tab.wait("document.getElementById('banner').hidden", 20)
    before = tab.value(points)
    tab.wait(f"({points}) !== {before!r}")


def test_the_docs_list_every_operation_offline(tab: Page, site: Site) -> None:
    opened(tab, site, "/docs")
    tab.wait("document.querySelectorAll('article').length >= 14")
    text = tab.value("document.querySelector('main').textContent")
    assert f"curl -X POST http://127.0.0.1:{site.port}/ingest/events" in text
    assert '{"sql":"SELECT' in text
    assert tab.complaints == []
    assert {request.split("/")[2] for request in tab.requests} == {f"127.0.0.1:{site.port}"}
