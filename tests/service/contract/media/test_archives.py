"""Archives are refused at the door, or read one picture at a time."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.errors import (
    ArchiveTooLarge,
    BadArchive,
    BadFolder,
    BadPicture,
    BadSetting,
    EmptyArchive,
    EncryptedArchive,
    UnsafeArchive,
)
from service.contract.media.archives import (
    ArchiveLimits,
    Member,
    check_archive,
    find_white,
    iter_media,
    iter_members,
    resolve_mode,
)
from service.contract.media.pictures import PictureLimits
from tests.support.tiffs import tiff_of

GOOD = {"a.jpg": b"first", "deep/er/b.PNG": b"second", "notes.txt": b"text"}
KINDS = ["zip", "tar", "tar.gz"]


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tar_of(files: dict[str, bytes], *, extra: tuple[tarfile.TarInfo, ...] = (), gz: bool = False) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(file.getvalue()) if gz else file.getvalue()


def archive_of(kind: str, files: dict[str, bytes]) -> bytes:
    return zip_of(files) if kind == "zip" else tar_of(files, gz=kind == "tar.gz")


@pytest.fixture
def write(tmp_path):
    def _write(data: bytes):
        path = tmp_path / "archive"
        path.write_bytes(data)
        return path

    return _write


@pytest.mark.parametrize("kind", KINDS)
def test_good_archive_is_summed_up_and_read(kind, write):
    path = write(archive_of(kind, GOOD))
    summary = check_archive(path)
    assert (summary.kind, summary.pictures, summary.unpacked_bytes) == (kind, 2, 15)
    assert list(iter_media(path)) == [("a.jpg", b"first"), ("deep/er/b.PNG", b"second")]


def zip_named(written: bytes, *, flags: int = 0, unicode_name: bytes = b"") -> bytes:
    """A zip of one picture whose name stands in the file as it is given."""
    field = struct.pack("<BI", 1, zlib.crc32(written)) + unicode_name
    extra = struct.pack("<HH", 0x7075, len(field)) + field if unicode_name else b""
    local = struct.pack(
        "<4sHHHHHIIIHH", b"PK\3\4", 20, flags, 0, 0, 0, zlib.crc32(b"x"), 1, 1, len(written), len(extra)
    )
    central = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, flags, 0, 0, 0, zlib.crc32(b"x"), 1, 1,
                          len(written), len(extra), 0, 0, 0, 0, 0)  # fmt: skip
    start = local + written + extra + b"x"
    entry = central + written + extra
    return start + entry + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(start), 0)


@pytest.mark.parametrize(
    ("archive", "name"),
    [
        (zip_named("Hündin/日.jpg".encode()), "Hündin/日.jpg"),  # Finder: no flag
        (zip_named("Hündin.jpg".encode(), flags=0x800), "Hündin.jpg"),
        (zip_named("Hündin.jpg".encode("cp437")), "Hündin.jpg"),  # Windows
        (zip_named(b"H?ndin.jpg", unicode_name="Hündin.jpg".encode()), "Hündin.jpg"),  # Info-ZIP
        (zip_named("Hündin.jpg".encode("cp850"), unicode_name="日.jpg".encode()), "日.jpg"),
        (zip_named(b"plain.jpg", unicode_name=b"\xff.jpg"), "plain.jpg"),  # the field is damaged
    ],
)
def test_names_in_a_zip_are_those_that_the_packer_saw(archive, name, write):
    path = write(archive)
    assert list(iter_media(path)) == [(name, b"x")]
    assert check_archive(path).pictures == 1


def test_a_stale_unicode_name_of_a_renamed_member_is_ignored(write):
    archive = zip_named(b"old_.jpg", unicode_name="öld.jpg".encode()).replace(b"old_.jpg", b"new_.jpg")
    assert list(iter_media(write(archive))) == [("new_.jpg", b"x")]


def test_a_unicode_name_may_not_lead_out_of_the_archive(write):
    with pytest.raises(UnsafeArchive, match="leads out"):
        check_archive(write(zip_named(b"a.jpg", unicode_name=b"../a.jpg")))


@pytest.mark.parametrize("kind", KINDS)
def test_stacks_count_as_videos(kind, write):
    pages = [np.zeros((9, 9), np.uint8)] * 2
    path = write(archive_of(kind, {f"{n}.tif": tiff_of(*pages) for n in range(5)}))
    summary = check_archive(path)
    assert (summary.pictures, summary.videos, summary.mode) == (0, 5, "clips")
    assert all(media.read() == tiff_of(*pages) for _, media in iter_media(path))
    single = check_archive(write(archive_of(kind, {"a.tif": tiff_of(*pages[:1])})))
    assert (single.pictures, single.videos, single.mode) == (1, 0, "stills")


def test_a_bare_stack_is_an_upload(write):
    path = write(tiff_of(*[np.zeros((9, 9), np.uint8)] * 2))
    assert check_archive(path).kind == "video"


def test_what_is_white_is_found_in_the_whole_upload(write):
    deep = [tiff_of(np.full((9, 9), value, np.uint16)) for value in (300, 3000)]
    files = {"a.tif": deep[0], "b.tif": deep[1], "c.tif": deep[1][:40], "d.png": b"x", "e.jpg": b"y", "f.png": b""}
    for kind in KINDS:
        assert find_white(write(archive_of(kind, files)), ArchiveLimits(), PictureLimits()) == 4095
    assert find_white(write(zip_of(GOOD)), ArchiveLimits(), PictureLimits()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_and_mac_files_are_passed_over(kind, write):
    files = {"__MACOSX/._a.jpg": b"x", "set/.thumb.jpg": b"x", ".git/a.png": b"x", "set/a.jpg": b"y"}
    path = write(archive_of(kind, files))
    assert check_archive(path).pictures == 1
    assert [name for name, _ in iter_media(path)] == ["set/a.jpg"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../a.jpg", "set/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "c:a.jpg", "..\\a.jpg", "set\\..\\..\\a.jpg"]
)
def test_refuses_names_that_lead_out(kind, name, write):
    path = write(archive_of(kind, {"ok.jpg": b"x", name: b"x"}))
    with pytest.raises(UnsafeArchive, match="leads out of the archive's folder"):
        check_archive(path)


def test_refuses_a_nul_in_a_zip_name(write):
    data = zip_of({"aaaaa.jpg": b"x"}).replace(b"aaaaa.jpg", b"aa\0aa.jpg")
    with pytest.raises(UnsafeArchive):
        check_archive(write(data))


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"?"]
)
def test_refuses_links_and_devices_in_a_tar(kind, gz, write):
    info = tarfile.TarInfo("a.jpg")
    info.type, info.linkname = kind, "b.jpg"
    with pytest.raises((UnsafeArchive, BadArchive)) as caught:
        check_archive(write(tar_of({"b.jpg": b"x"}, extra=(info,), gz=gz)))
    assert isinstance(caught.value, UnsafeArchive) or kind == b"?"


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644])
def test_refuses_links_and_devices_in_a_zip(mode, write):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchive, match="link or a device"):
        check_archive(write(file.getvalue()))


def test_refuses_an_encrypted_zip(write):
    data = bytearray(zip_of({"a.jpg": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(EncryptedArchive, match="without a password"):
        check_archive(write(bytes(data)))


def test_refuses_a_packing_method_that_could_swell_unseen(write):
    with pytest.raises(BadArchive, match="method"):
        check_archive(write(zip_of({"a.jpg": b"x" * 1000}, zipfile.ZIP_LZMA)))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_refuses_a_bomb(kind, write):
    """More than 64 MiB, two hundred times its size or more."""
    path = write(archive_of(kind, {"a.bmp": bytes(100 * 2**20)}))
    assert path.stat().st_size < 500_000
    with pytest.raises(ArchiveTooLarge, match="unpacks to more than"):
        check_archive(path)


def test_refuses_a_tar_gz_whose_header_promises_too_much(write):
    """The size in a header is not believed: skipping over it would decompress it."""
    info = tarfile.TarInfo("a.jpg")
    info.size = 10**13
    with pytest.raises(ArchiveTooLarge):
        check_archive(write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))))


@pytest.mark.parametrize("gz", [False, True])
def test_refuses_a_name_of_gigabytes(gz, write):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**31
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises((UnsafeArchive, ArchiveTooLarge)):
        check_archive(write(gzip.compress(data) if gz else data))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_more_than_the_limits(kind, write):
    path = write(archive_of(kind, {f"{i}.jpg": os.urandom(100) for i in range(20)}))
    with pytest.raises(ArchiveTooLarge, match="at most 19"):
        check_archive(path, ArchiveLimits(max_files=19))
    with pytest.raises(ArchiveTooLarge, match="1999 bytes"):
        check_archive(path, ArchiveLimits(max_unpacked_bytes=1999))
    assert check_archive(path, ArchiveLimits(max_files=20)).pictures == 20
    if kind != "tar.gz":  # whose headers count as well
        assert check_archive(path, ArchiveLimits(max_unpacked_bytes=2000)).pictures == 20


def test_member_that_ends_early_is_not_taken_for_a_whole_one(tmp_path):
    short = Member("a.jpg", 5, lambda: io.BytesIO(b"1234"))
    with pytest.raises(EOFError):
        short.read()
    with pytest.raises(EOFError):
        short.copy(tmp_path / "copy")
    assert Member("a.jpg", 4, lambda: io.BytesIO(b"1234")).read() == b"1234"


def test_files_of_a_folder_come_in_the_order_of_their_paths(tmp_path):
    names = [f"{folder}/{name}.jpg" for folder in "abcd" for name in "12"]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [member.name for member in iter_members(tmp_path, "folder", ArchiveLimits())] == names


def test_entries_of_a_zip_are_counted_before_they_are_read(write, monkeypatch):
    path = write(zip_of({f"{i}.jpg": b"" for i in range(50)}))
    monkeypatch.setattr(zipfile.ZipFile, "infolist", lambda self: pytest.fail("the directory was read"))
    with pytest.raises(ArchiveTooLarge, match="at most 40"):
        check_archive(path, ArchiveLimits(max_files=40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("files", [{}, {"readme.txt": b"x"}, {"__MACOSX/a.jpg": b"x"}])
def test_refuses_an_archive_without_a_picture(kind, files, write):
    with pytest.raises(EmptyArchive, match="no file with the suffix of a picture or a video; expected JPEG, PNG"):
        check_archive(write(archive_of(kind, files)))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", os.urandom(4000), b"PK\x03\x04 not really", b"\x1f\x8b not really", b"BZh91AY&SY" + bytes(600)],
    ids=["empty", "text", "noise", "zip start", "gzip start", "bzip2"],
)
def test_refuses_what_is_no_archive(data, write):
    with pytest.raises(BadArchive, match=r"expected a zip, tar or tar\.gz"):
        check_archive(write(data))


def test_refuses_a_gzip_that_holds_no_tar(write):
    with pytest.raises(BadArchive):
        check_archive(write(gzip.compress(b"hello" * 1000)))


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_a_cut_archive(kind, write):
    data = archive_of(kind, {f"{i}.jpg": os.urandom(3000) for i in range(5)})
    with pytest.raises(BadArchive):
        check_archive(write(data[: len(data) * 2 // 3 + 100]))


def test_refuses_a_tar_damaged_in_the_middle(write):
    data = bytearray(tar_of({"a.jpg": b"x", "b.jpg": b"y", "c.jpg": b"z"}))
    data[1024 + 5] = 99
    with pytest.raises(BadArchive, match="damaged"):
        check_archive(write(bytes(data)))


def test_damaged_member_of_a_zip_is_named_and_does_not_stop_the_rest(write):
    data = bytearray(zip_of({"a.jpg": b"first" * 9, "b.jpg": b"second" * 9, "c.jpg": b"third"}, zipfile.ZIP_STORED))
    data[data.index(b"secondsecond")] ^= 1
    path = write(bytes(data))
    assert check_archive(path).pictures == 3
    result = dict(iter_media(path))
    assert result["a.jpg"] == b"first" * 9
    assert isinstance(result["b.jpg"], BadPicture)
    assert "CRC" in result["b.jpg"].detail
    assert result["c.jpg"] == b"third"


def test_size_in_a_zip_directory_bounds_what_is_unpacked(write):
    """A directory with too small a size gives an error for that member, not more bytes."""
    data = bytearray(zip_of({"a.jpg": bytes(10 * 2**20)}))
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, entry + 24, 1000)
    ((_, result),) = iter_media(write(bytes(data)))
    assert isinstance(result, BadPicture) or len(result) <= 1000


@pytest.mark.parametrize("kind", KINDS)
def test_huge_member_is_named_and_not_read(kind, write):
    path = write(archive_of(kind, {"big.jpg": bytes(3000), "ok.jpg": b"x"}))
    result = list(iter_media(path, ArchiveLimits(max_picture_bytes=2999)))
    assert isinstance(result[0][1], BadPicture)
    assert "at most 2999" in result[0][1].detail
    assert result[1] == ("ok.jpg", b"x")


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_pictures_or_a_typed_error(kind, edits, tmp_path_factory):
    data = bytearray(archive_of(kind, GOOD))
    for where, value in edits:
        data[int(where * len(data))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(data))
    try:
        check_archive(path)
        for _, picture in iter_media(path):
            assert isinstance(picture, bytes | BadPicture)
    except BadArchive:
        pass


# videos


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_counted_and_can_be_copied_out(kind, write, tmp_path):
    film = os.urandom(3_000_000)
    path = write(archive_of(kind, {"set/walk.mp4": film, "set/.walk.mp4": b"hidden", "run.WEBM": b"short"}))
    summary = check_archive(path)
    assert (summary.pictures, summary.videos, summary.mode) == (0, 2, "clips")
    copied = {}
    for name, video in iter_media(path):
        assert isinstance(video, Member)
        assert video.path is None
        video.copy(tmp_path / "copy")
        copied[name] = (tmp_path / "copy").read_bytes()
    assert copied == {"set/walk.mp4": film, "run.WEBM": b"short"}


def test_video_damaged_in_its_archive_is_not_copied_as_if_whole(write, tmp_path):
    data = bytearray(zip_of({"walk.mp4": os.urandom(300_000)}, zipfile.ZIP_STORED))
    data[len(data) // 2] ^= 1
    media = iter_media(write(bytes(data)))
    _, video = next(media)
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        video.copy(tmp_path / "copy")


def test_video_by_itself_is_an_upload(write, video):
    path = write(video(frames=2))
    summary = check_archive(path)
    assert (summary.kind, summary.videos, summary.mode) == ("video", 1, "clips")
    ((_, found),) = iter_media(path)
    assert found.bare_video
    assert found.path == path


def test_tar_whose_first_name_reads_like_a_video_is_a_tar(write):
    assert check_archive(write(tar_of({"the_free_dogs.jpg": b"x"}))).kind == "tar"


def test_pictures_and_videos_together_need_a_mode(write):
    path = write(zip_of({"a.jpg": b"x", "b.jpg": b"x", "walk.mp4": b"x"}))
    with pytest.raises(BadSetting, match="2 pictures and 1 videos; set mode to clips"):
        check_archive(path)
    assert check_archive(path, mode="clips").mode == "clips"
    assert check_archive(path, mode="stills").mode == "stills"


@pytest.mark.parametrize(
    ("mode", "pictures", "videos", "taken"),
    [
        ("auto", 3, 0, "stills"),
        ("auto", 0, 3, "clips"),
        ("clips", 3, 0, "clips"),
        ("stills", 0, 3, "stills"),
    ],
)
def test_pictures_are_stills_and_videos_clips_unless_the_mode_says_otherwise(mode, pictures, videos, taken):
    assert resolve_mode(mode, pictures, videos) == taken


# folders


def test_folder_is_read_in_sorted_order_without_links(tmp_path):
    folder = tmp_path / "set"
    for name in ("b.jpg", "sub/a.jpg", ".hidden/c.jpg", "note.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "link.jpg").symlink_to(folder / "b.jpg")
    (folder / "out").symlink_to(tmp_path)
    assert check_archive(folder).kind == "folder"
    assert list(iter_media(folder)) == [("b.jpg", b"b.jpg"), ("sub/a.jpg", b"sub/a.jpg")]


def test_videos_of_a_folder_are_read_in_place(tmp_path):
    (tmp_path / "walk.mp4").write_bytes(b"x")
    assert check_archive(tmp_path).mode == "clips"
    ((name, video),) = iter_media(tmp_path)
    assert (name, video.path) == ("walk.mp4", tmp_path / "walk.mp4")


def test_folder_without_a_picture_is_refused(tmp_path):
    with pytest.raises(BadFolder):
        check_archive(tmp_path)


def test_place_before_the_archive_is_damage_and_no_fault_of_the_disk(tmp_path):
    """As in a zip whose first file lost some bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("walk.mp4", bytes(1000))
    data, path = file.getvalue(), tmp_path / "a.zip"
    path.write_bytes(data[:200] + data[300:])
    media = iter_media(path)
    name, member = next(media)
    assert name == "walk.mp4"
    with pytest.raises(ValueError, match="it names the position -100; expected 0 or more"):
        member.copy(tmp_path / "copy")
