"""No key, password or secret is in a log, a metric, an answer or a stored file."""

from __future__ import annotations

import asyncio
import logging
import re
import tarfile
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from service.access.keys import FIRST_KEY_FILE, KeyStore, Scope
from service.cli.main import app as commands
from service.contract import routing
from service.contract.logs import configure_logging
from service.http.requests import LOG_FORMAT
from tests.service.training.test_train_jobs import GOOD

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_keys_are_in_no_log_metric_answer_or_file(
    serve, data_root, publish, consumer, make_picture, caplog, capsys, log_format
):
    """Also at the level DEBUG, where libraries log, of good, revoked, wrong and misplaced keys."""
    publish("dog")
    before = logging.getLogger().handlers[:]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the test's own client
    http = await serve(api_keys=True, log_level="DEBUG")
    caplog.set_level(logging.DEBUG)
    configure_logging("DEBUG", log_format, LOG_FORMAT)
    store = KeyStore(data_root)
    good = [store.create(name, [Scope.TRAIN])[1] for name in ("one", "two")]
    revoked_id, revoked = store.create("gone", [Scope.READ])
    store.revoke(revoked_id.id)
    wrong = f"{good[0][:-4]}AAAA"
    texts: list[str] = []

    async def ask(method: str, path: str, headers: dict[str, str], **content) -> None:
        answer = await http.request(method, path, headers=headers, **content)
        texts.append(f"{answer.headers} {answer.text}")

    try:
        for key in (*good, revoked, wrong):
            for headers in (
                {"Authorization": f"Bearer {key}"},
                {"X-API-Key": key},
                {"Authorization": key},
                {"Authorization": f"Basic {key}"},
                {"Authorization": f"Bearer {key}", "X-Request-ID": "bad id"},
            ):
                await ask("GET", "/priors", headers)
                await ask("GET", f"/priors?key={key}", headers)
            own = {"Authorization": f"Bearer {key}"}
            picture = [("images", ("a.png", make_picture()))]
            await ask("POST", "/estimate", own, data={"category": "dog"}, files=picture)
            await ask("POST", "/estimate", own, data={"category": "dog"}, files=[("images", ("a.png", b"x"))])
            await ask("POST", "/train-jobs", own, data={"category": "cat"}, files={"archive": ("a.zip", GOOD)})
            await ask("POST", "/train-jobs", own, content=b"{")
        await ask("GET", "/metrics", {})
        await ask("GET", "/train-jobs", {"Authorization": f"Bearer {good[0]}"})
    finally:
        logging.getLogger().handlers = before
    written = capsys.readouterr()
    logged = caplog.text + written.out + written.err
    assert "POST /estimate 200" in logged
    assert "401" in logged
    files = {path: path.read_bytes() for path in data_root.rglob("*") if path.is_file()}
    assert len(files) > 3
    with redis.Redis.from_url(http.gateway.settings.redis_url) as client:
        stored = b"".join(client.dump(key) or b"" for key in client.scan_iter())
    for key in (*good, revoked, wrong):
        secret = key.split("_", 2)[2]
        assert secret not in logged
        assert not any(secret in text for text in texts)
        assert [path for path, data in files.items() if secret.encode() in data and path.name != FIRST_KEY_FILE] == []
        assert secret.encode() not in stored


async def test_password_of_redis_is_in_no_log_and_no_answer(serve, publish, make_picture, caplog):
    """Nor while Redis is away, when connections are logged."""
    publish("dog")
    caplog.set_level(logging.DEBUG)
    http = await serve(redis_url="redis://:hunter2secret@127.0.0.1:9/0", estimate_timeout_s=1.0)
    answers = [
        await http.get("/readyz"),
        await http.get("/metrics"),
        await http.get("/train-jobs"),
        await http.post("/estimate", data={"category": "dog"}, files=[("images", ("a.png", make_picture()))]),
        await http.post("/train-jobs", data={"category": "cat"}, files={"archive": ("a.zip", GOOD)}),
    ]
    await asyncio.sleep(0.3)
    assert [answer.status_code for answer in answers] == [503, 200, 503, 503, 503]
    assert caplog.text
    assert "hunter2secret" not in caplog.text
    assert not any("hunter2secret" in answer.text for answer in answers)


def test_backup_has_no_key_in_plain_text(data_root, tmp_path, redis_url, monkeypatch):
    from typer.testing import CliRunner

    store = KeyStore(data_root)
    _, text = store.create("one", [Scope.TRAIN])
    store2 = KeyStore(tmp_path / "other")
    store2.ensure_first()
    (data_root / FIRST_KEY_FILE).write_text((tmp_path / "other" / FIRST_KEY_FILE).read_text())
    first = (data_root / FIRST_KEY_FILE).read_text().strip()
    monkeypatch.setenv("PPL_DATA_ROOT", str(data_root))
    monkeypatch.setenv("PPL_REDIS_URL", redis_url)
    done = CliRunner().invoke(commands, ["backup", str(tmp_path / "b.tar")])
    assert done.exit_code == 0, done.output
    with tarfile.open(tmp_path / "b.tar") as archive:
        names = archive.getnames()
    data = (tmp_path / "b.tar").read_bytes()
    assert any("keys/" in name for name in names)
    assert text.encode() not in data
    assert first.encode() not in data


@pytest.mark.parametrize("kind", routing.KINDS)
def test_queue_takes_json_alone(kind):
    """A message of another content type, such as a pickle, is not decoded."""
    options = routing.celery_options(kind, "redis://127.0.0.1")
    assert options["accept_content"] == ["json"]
    assert options["task_serializer"] == "json"
    assert options["result_backend"] is None


def test_nothing_is_unpickled():
    """No pickle, no eval: what comes from Redis, an upload or a version is JSON, msgpack or safetensors."""
    unsafe = re.compile(r"import (?:pickle|dill|shelve|marshal)\b|torch\.load\(|allow_pickle=True|(?<![.\w])eval\(")
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for room in ("model", "service", "worker")
        for path in (ROOT / room).rglob("*.py")
        for match in unsafe.finditer(path.read_text())
    }
    assert found == {
        "model/network/perceptual.py: torch.load(",  # published weights, tensors alone, checked by their hash
        "model/scoring/label_hdf5.py: import pickle",  # of texts and numbers alone, finds no class
    }


def test_redis_is_not_published_by_the_compose_file():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert "ports" not in services["redis"]
    assert services["gateway"]["ports"] == ["${PPL_PUBLISH:-127.0.0.1:8000}:8000"]
    script = (ROOT / "docker" / "prepare.sh").read_text()
    assert "requirepass" in script


async def test_hostile_requests_get_4xx_and_no_header_of_theirs(http, publish):
    """Deep and long JSON, thousands of parts and fields, and names that would be headers."""
    publish("dog")
    deep = b'{"names": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    as_json = {"content-type": "application/json"}
    parts = b"".join(b'--x\r\ncontent-disposition: form-data; name="f%d"\r\n\r\n1\r\n' % n for n in range(5000))
    header = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"' + b"\r\nx-a: b" * 20_000
    form = {"content-type": "multipart/form-data; boundary=x"}
    answers = [
        await http.put("/priors/dog/keypoint-names", content=deep, headers=as_json),
        await http.post("/train-jobs", content=deep, headers=as_json),
        await http.put("/priors/dog/keypoint-names", content=b'{"names": "' + b"x" * 2**19, headers=as_json),
        await http.post("/estimate", content=parts + b"--x--\r\n", headers=form),
        await http.post("/estimate", content=header, headers=form),
        await http.post(
            "/estimate", content=b"", headers={"content-type": "multipart/form-data; boundary=" + "x" * 9999}
        ),
        await http.post("/train-jobs", content=b"{}", headers={**as_json, "content-length": "0" * 5000 + "2"}),
        await http.get("/priors/%0d%0aset-cookie:%20a=b"),
        await http.get("/priors/dog/versions/..%2f..%2fx/export"),
        await http.get("/priors/dog%00/history"),
        await http.get("/train-jobs?cursor=" + "x" * 60_000),
        await http.get("/priors/" + "%E2%80%AE" * 1000),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.request.url
        assert len(answer.content) < 20_000
        assert not {"set-cookie", "x-a"} & set(answer.headers)
        assert isinstance(answer, httpx.Response)
