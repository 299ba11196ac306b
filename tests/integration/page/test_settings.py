"""The inspection page in a real browser against gateways of other settings: keys, a prefix, limits, long lists."""

from __future__ import annotations

from service.access.keys import KeyStore, Scope
from service.contract.jobs.record import NewJob
from service.contract.jobs.store import JobStore
from service.contract.versions.store import VersionStore
from service.runtime.settings import Settings
from service.versions.samples import install_samples
from tests.support.browser import NEEDS_BROWSER
from tests.support.live_gateway import live_gateway

pytestmark = NEEDS_BROWSER


def test_key_is_asked_once_behind_a_prefix(browser, redis_url, redis_client, tmp_path):
    from tests.support.page import Visitor

    install_samples(VersionStore(tmp_path))
    _, text = KeyStore(tmp_path).create("lab", [Scope.READ])
    settings = Settings(redis_url=redis_url, data_root=tmp_path, api_keys=True, root_path="/lab/ppl")
    with live_gateway(settings) as address:
        visitor = Visitor(browser, f"{address}/lab/ppl")
        page = visitor.page
        page.goto(f"{visitor.url}/#/priors")
        page.get_by_label("API key", exact=True).fill(text)
        page.get_by_role("button", name="Use this key").click()
        page.get_by_role("img", name="The skeleton of dog").wait_for()
        page.get_by_role("link", name="dog").click()
        page.get_by_text("Names of the keypoints").wait_for()

        assert text not in page.evaluate(
            "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
        )
        visitor.console = [line for line in visitor.console if "401" not in line]  # the request that had no key
        visitor.check()
        visitor.close()


def test_page_waits_as_a_busy_server_says_and_continues(browser, redis_url, redis_client, tmp_path):
    from tests.support.page import Visitor

    install_samples(VersionStore(tmp_path))
    with live_gateway(Settings(redis_url=redis_url, data_root=tmp_path, requests_per_s=2)) as address:
        visitor = Visitor(browser, address)
        page = visitor.open("#/priors/dog")
        page.get_by_text("The server is busy. This continues by itself in").first.wait_for()
        page.get_by_text("Names of the keypoints").wait_for()
        page.get_by_role("cell", name="active").wait_for()

        refused = [text for text in visitor.console if "429" in text]
        assert refused
        assert visitor.console == refused  # browsers report each
        visitor.close()


# milliseconds from the start of the navigation, and of tasks that kept the page from answering
MEASURE = """() => ({
  drawn: performance.getEntriesByName("drawn")[0]?.startTime,
  stalls: window.stalls.map((entry) => Math.round(entry)),
})"""
WATCH = """
window.stalls = []
new PerformanceObserver((list) => window.stalls.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({ type: "longtask", buffered: true })
new MutationObserver(() => {
  if (document.querySelector("svg.skeleton .dot") && !performance.getEntriesByName("drawn").length)
    performance.mark("drawn")
}).observe(document, { childList: true, subtree: true })
"""


def test_two_thousand_jobs_and_two_hundred_versions_are_listed(browser, redis_url, redis_client, tmp_path):
    """Prints how soon the first skeleton is there, and tasks of more than 50 ms (``pytest -s``)."""
    from tests.support.page import Visitor

    jobs, store = JobStore(redis_client), VersionStore(tmp_path)
    for number in range(2000):
        jobs.create(NewJob(f"kind{number % 7}", {"steps": 100}, 100))
    install_samples(store)
    sample = store.path("dog", store.active("dog"))
    for number in range(199):
        with store.staging("dog", name := f"202601{1 + number // 24:02}T{number % 24:02}0000-abc123") as folder:
            for file in sample.iterdir():
                (folder / file.name).hardlink_to(file)
            store.publish(folder, "dog", name)
    with live_gateway(Settings(redis_url=redis_url, data_root=tmp_path)) as address:
        visitor = Visitor(browser, address)
        page = visitor.page
        page.add_init_script(WATCH)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        for view in ("", "#/priors/dog", "#/jobs"):
            page.goto("about:blank")
            visitor.open(view)
            if "dog" in view:
                assert page.locator("header select option").count() == 201  # and the alias
            if "jobs" in view:
                for count in range(200, 2001, 100):
                    page.get_by_role("button", name="Show more").click()
                    page.locator(".list > li").nth(count - 1).wait_for(state="attached")
                assert page.get_by_role("button", name="Show more").is_hidden()
            values = {item["name"]: item["value"] for item in session.send("Performance.getMetrics")["metrics"]}
            cpu_ms = round(1000 * values["TaskDuration"])  # of the main thread, whatever else the machine does
            print(f"\n{view or '#/start'}: {page.evaluate(MEASURE)}, main thread so far {cpu_ms} ms")
        visitor.close()
