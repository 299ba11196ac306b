"""Behind a proxy with a path prefix, and for pages of other sites."""

from __future__ import annotations

import io
import re
import zipfile

import pytest

from service.gateway.app import create_app
from service.runtime.settings import Settings
from tests.support.api_double import png


@pytest.fixture(params=["cut off", "left"])
async def proxied(request, serve):
    """A client of a proxy that serves the gateway below /lab/ppl; paths as its users see them."""
    http = await serve(root_path="/lab/ppl", sample_categories=False)

    async def get(path: str, method: str = "GET", **options):
        assert path.startswith("/lab/ppl")
        return await http.request(
            method, path.removeprefix("/lab/ppl") if request.param == "cut off" else path, **options
        )

    return get


async def test_the_documentation_and_all_that_it_loads_come_from_below_the_prefix(proxied):
    for path in ("/lab/ppl/docs", "/lab/ppl/redoc"):
        page = await proxied(path)
        assert page.status_code == 200
        links = re.findall(r"(?:src|href)=\"(/[^\"]+)|url: '([^']+)'|spec-url=\"([^\"]+)", page.text)
        addresses = [next(filter(None, found)) for found in links]
        assert "/lab/ppl/openapi.json" in addresses
        for address in addresses:
            assert (await proxied(address)).status_code == 200, address
    document = (await proxied("/lab/ppl/openapi.json")).json()
    assert document["servers"] == [{"url": "/lab/ppl"}]
    assert "/lab/ppl/train-jobs" in document["info"]["description"]


async def test_addresses_in_answers_have_the_prefix(proxied):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png())
    sent = await proxied("/lab/ppl/datasets", "POST", files={"archive": ("a.zip", archive.getvalue())})
    assert sent.status_code == 201, sent.text
    assert sent.headers["location"] == f"/lab/ppl/datasets/{sent.json()['id']}"
    assert (await proxied(sent.headers["location"])).json()["id"] == sent.json()["id"]
    slash = await proxied("/lab/ppl/priors/")
    assert slash.status_code == 307
    assert slash.headers["location"].endswith("/lab/ppl/priors")


async def test_requests_are_counted_by_route_and_unknown_paths_named(proxied, problem):
    assert (await proxied("/lab/ppl/priors")).status_code == 200
    metrics = (await proxied("/lab/ppl/metrics")).text
    assert re.search(r'ppl_\w+_total\{method="GET",.*"/priors",.*\} 1.0', metrics)
    found = problem(await proxied("/lab/ppl/nothing"), 404, "not_found")
    assert "nothing at /lab/ppl/nothing; /lab/ppl/docs lists" in found["detail"]
    allowed = await proxied("/lab/ppl/priors", "DELETE")
    assert (allowed.status_code, allowed.headers["allow"]) == (405, "GET, HEAD")


async def test_the_background_loops_start_and_end(serve):
    http = await serve(root_path="/lab/ppl", sample_categories=False)
    received = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return received.pop(0)

    async def send(message):
        sent.append(message["type"])

    app = create_app(http.gateway.settings)
    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_prefix_is_a_plain_path():
    for text in ("ppl", "/ppl/", "/a b"):
        with pytest.raises(ValueError, match="root_path"):
            Settings(root_path=text)


ORIGIN = "https://page.example"


async def test_pages_of_named_sites_may_use_the_api(serve, problem):
    http = await serve(cors_origins="https://other.example, https://page.example/")
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    allowed = await http.options("/train-jobs", headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    answer = await http.get("/priors", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert {"location", "ppl-errors", "etag"} <= set(
        answer.headers["access-control-expose-headers"].lower().split(", ")
    )
    problem(await http.post("/train-jobs", json={}, headers={"Origin": ORIGIN}), 422, "bad_request")
    stranger = await http.get("/priors", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    problem(await http.post("/train-jobs", json={}, headers={"Origin": "https://evil.example"}), 403, "forbidden")


async def test_pages_of_any_site_may_with_keys_alone(serve):
    http = await serve(cors_origins="*", api_keys=True)
    answer = await http.get("/priors", headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "*")
    with pytest.raises(ValueError, match="PPL_CORS_ORIGINS is"):
        Settings(cors_origins="*")


@pytest.mark.parametrize("path", ["/estimate", "/train-jobs", "/datasets"])
async def test_a_compressed_body_is_refused_in_words(serve, problem, path):
    http = await serve()
    response = await http.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "compressed (Content-Encoding: gzip)" in problem(response, 415, "bad_request")["detail"]
    assert response.headers["accept-encoding"] == "identity"
