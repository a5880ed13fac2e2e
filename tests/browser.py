"""A real browser without a window: Debian's Chromium, driven through chromedriver."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser of the tests' own."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    web = webdriver.Chrome(options, Service(driver))
    try:
        yield Browser(web)
    finally:
        web.quit()


class Browser:
    """Pages as a reader sees them."""

    def __init__(self, web: webdriver.Chrome) -> None:
        self.web = web

    def open(self, page: Path, width: int = 1200, dark: bool = False) -> None:
        """Show a file in a window of this width, in the light or the dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.web.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.web.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for kind in ("browser", "performance"):
            self.web.get_log(kind)  # forgets what other pages did
        self.web.get(page.as_uri())

    def run(self, script: str) -> Any:
        """What a script in the page returns."""
        return self.web.execute_script(script)

    def console(self) -> list[dict[str, Any]]:
        """What the page has printed or broken."""
        return list(self.web.get_log("browser"))

    def requested(self) -> list[str]:
        """The addresses that the page asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.web.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
