"""Multipart bodies are read the same however they are cut into pieces."""

from __future__ import annotations

import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.errors import BadRequest, BodyTooLarge, TooManyImages
from service.http.multipart import MAX_FIELD_BYTES, FileField, Form, read_form
from service.http.problems import BadField

BOUNDARY = "b0undary"


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    extra = f'; filename="{filename}"' if filename is not None else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n'
    return head.encode() + (b"Content-Type: image/png\r\n" if filename else b"") + b"\r\n" + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def request(chunks: list[bytes]) -> Request:
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return messages.pop(0)

    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


async def read(body: bytes, size: int = 10**9, **options) -> Form:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    field = FileField(max_files=3, too_many=TooManyImages("too many"), **options)
    return await read_form(request(chunks), {"images": field, "prior": FileField(max_bytes=100, or_text=True)})


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 200),
    files=st.lists(st.binary(max_size=300), max_size=3),
    text=st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40),
)
async def test_pieces_do_not_matter(size, files, text):
    body = (
        part("note", text.encode()) + b"".join(part("images", data, f"{i}.png") for i, data in enumerate(files)) + END
    )
    form = await read(body, size)
    assert form.fields == {"note": text}
    assert [(file.filename, bytes(file.data)) for file in form.files] == [(f"{i}.png", d) for i, d in enumerate(files)]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000, 10**9])
async def test_files_go_to_a_sink_as_they_arrive(size):
    data = bytes(range(256)) * 9000
    received = []

    async def sink(piece: bytes) -> None:
        received.append(piece)

    if size < 100:
        data = data[:5000]
    form = await read(part("images", data, "a.zip") + part("x", b"1") + END, size, sink=sink)
    assert b"".join(received) == data
    assert max(map(len, received)) <= 2**20 + size
    assert bytes(form.files[0].data) == b""
    assert form.fields == {"x": "1"}


async def test_file_names_may_hold_any_character():
    form = await read(part("images", b"x", "übung ☃.png") + END)
    assert form.files[0].filename == "übung ☃.png"


async def test_text_that_is_not_utf_8_is_read_as_latin_1():
    assert (await read(part("note", b"caf\xe9") + END)).fields == {"note": "café"}


@pytest.mark.parametrize("filename", [None, "prior.json"])
async def test_field_may_take_a_file_or_text(filename):
    form = await read(part("prior", b"{}", filename) + part("images", b"x", "a") + END, 7)
    found = form.first("prior")
    assert found is not None
    assert (bytes(found.data), found.size, found.filename) == (b"{}", 2, filename or "")
    assert form.fields == {}


async def test_text_left_empty_counts_as_no_file():
    assert (await read(part("prior", b"") + END)).first("prior") is None


async def test_refuses_a_file_longer_than_its_field_allows():
    with pytest.raises(BodyTooLarge, match="'prior' has more than 100 bytes"):
        await read(part("prior", bytes(101), "a") + END, 50)


async def test_refuses_more_files_than_allowed():
    with pytest.raises(TooManyImages):
        await read(b"".join(part("images", b"x", "a") for _ in range(4)) + END)


async def test_refuses_a_file_in_another_field_before_it_is_read():
    with pytest.raises(BadField, match="send files in 'images' or 'prior'"):
        await read(part("picture", b"x", "a") + END)


async def test_refuses_a_field_that_is_too_long():
    with pytest.raises(BadField, match="more than"):
        await read(part("note", bytes(MAX_FIELD_BYTES + 1)) + END, 10_000)


async def test_refuses_too_many_fields():
    with pytest.raises(BadRequest, match="more than 200 fields"):
        await read(b"".join(part(f"f{i}", b"x") for i in range(201)) + END)


async def test_refuses_a_body_that_ends_early():
    body = part("images", b"x" * 1000, "a") + END
    for length in (0, 10, 500, len(body) - 3):
        with pytest.raises(BadRequest, match="ends before its last boundary"):
            await read(body[:length])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("filename*=UTF-8''na%C3%AFve%20%22x%22.jpg", 'naïve "x".jpg'),  # some clients send it alone
        ("filename=\"na_ve.jpg\"; filename*=utf-8'en'na%C3%AFve.jpg", "naïve.jpg"),
        ("filename*=iso-8859-1''na%EFve.jpg; filename=plain.jpg", "naïve.jpg"),
        ("filename*=unheard-of''n%C3%AF.jpg", "nï.jpg"),
        ('filename="a; filename*=UTF-8.jpg"', "a; filename*=UTF-8.jpg"),
    ],
)
async def test_extended_file_names_are_read(names, expected):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; {names}\r\n\r\n'
    form = await read(head.encode() + b"x\r\n" + END)
    assert [(file.filename, bytes(file.data)) for file in form.files] == [(expected, b"x")]
