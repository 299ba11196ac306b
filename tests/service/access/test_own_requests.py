"""Without keys: what a web page may have a browser send is refused, what this machine's programs send is not."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "ppl.localhost", "127.0.0.1:8000", "127.8.9.10", "[::1]:8000", "192.168.1.7:80"],
)
async def test_requests_for_this_machine_are_served(http, host):
    assert (await http.get("/priors", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "", "["]
)
@pytest.mark.parametrize("path", ["/priors", "/webhooks/secret", "/livez", "/docs", "/metrics"])
async def test_requests_for_a_name_that_may_be_anybodys_are_refused(http, problem, host, path):
    found = problem(await http.get(path, headers={"Host": host}), 403, "forbidden")
    assert "PPL_ALLOWED_HOSTS" in found["detail"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://10.0.0.1"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/train-jobs"), ("POST", "/estimate"), ("DELETE", "/datasets/x")]
)
async def test_other_sites_pages_may_change_nothing(http, problem, origin, method, path):
    problem(await http.request(method, path, headers={"Origin": origin}), 403, "forbidden")


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000"])
async def test_pages_of_this_machine_may(http, problem, origin):
    problem(await http.post("/train-jobs", json={}, headers={"Origin": origin}), 422, "bad_request")


async def test_looking_is_left_to_the_browser_to_refuse(http):
    answer = await http.get("/priors", headers={"Origin": "https://evil.example"})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


async def test_names_that_are_set_are_served(serve, problem):
    http = await serve(allowed_hosts="ppl.lab.example, other.example")
    headers = {"Host": "PPL.lab.example:443", "Origin": "https://ppl.lab.example"}
    problem(await http.post("/train-jobs", json={}, headers=headers), 422, "bad_request")
    assert (await http.get("/priors", headers={"Host": "another.example"})).status_code == 403


async def test_with_keys_any_name_is_served(serve):
    http = await serve(api_keys=True)
    assert (await http.get("/priors", headers={"Host": "ppl.lab.example"})).status_code == 401
