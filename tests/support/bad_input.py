"""Send damaged files to a running stack, or give them to the readers, and check every answer."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from model.scoring.label_files import parse_labels
from model.scoring.labels import LabelsError
from service.contract.errors import ERROR_BY_CODE, JobFailed, PPLError
from service.contract.jobs.files import read_prior
from service.contract.media.archives import ArchiveLimits, check_archive, iter_media
from service.contract.media.boxes import parse_box_file
from service.contract.media.pictures import open_picture
from service.contract.media.video_request import VideoLimits
from service.contract.media.videos import BadVideo, iter_frames
from service.contract.versions.store import VersionStore
from service.versions.import_version import import_version
from tests.support.mutations import Case
from tests.support.seed_files import encoded, picture, seeds
from tests.support.stack_process import StackProcess, children

DEADLINE_S = 2.0
_GOOD = encoded(picture(3), "PNG")
_TINY = {"steps": 2, "image_size": 32, "perceptual_size": 32, "base_width": 8, "batch_size": 8, "features": "none"}
_TINY |= {"num_banks": 4, "bank_size": 4, "token_dim": 16, "memory_width": 16, "mask_grid": 4, "zoom": "off"}


def read_directly(case: Case, folder: Path) -> str:
    """Give a case to its reader in this process; return the code of the refusal, or "read"."""
    path = folder / "file"
    try:
        match case.kind:
            case "picture":
                open_picture(case.data)
            case "video":
                path.write_bytes(case.data)
                for _ in iter_frames(path, 100, VideoLimits(timeout_s=20)):
                    pass
            case "archive":
                path.write_bytes(case.data)
                check_archive(path, mode="stills")
                for _, member in iter_media(path, ArchiveLimits()):
                    if isinstance(member, bytes):
                        with suppress(PPLError):
                            open_picture(member)
            case "labels":
                parse_labels(case.data)
            case "boxes":
                parse_box_file(case.data)
            case "prior":
                read_prior(case.data)
            case "version":
                path.write_bytes(case.data)
                import_version(VersionStore(folder), path, folder / uuid.uuid4().hex, "dog", 2**30)
            case _:
                raise AssertionError(case.kind)
    except LabelsError:
        return "bad_labels"
    except BadVideo:
        return "bad_video"
    except PPLError as error:
        if error.status >= 500:
            raise
        return str(error.code)
    return "read"


@dataclass
class Report:
    """The outcomes of the cases.

    Attributes:
        answers: number by format and answer.
        seconds: of each case, and its name.
        memory: by part, time and resident kB.
        faults: what should not have happened.
    """

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[tuple[float, str]] = field(default_factory=list)
    memory: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterable[str]:
        """Describe it in a table."""
        total: Counter[str] = Counter()
        for name, counts in sorted(self.answers.items()):
            total.update(counts)
            listed = ", ".join(f"{answer} {count}" for answer, count in counts.most_common(6))
            yield f"{name:24} {sum(counts.values()):5}  {listed}"
        yield f"{'all':24} {sum(total.values()):5}  " + ", ".join(
            f"{answer} {n}" for answer, n in total.most_common(30)
        )
        times = sorted(self.seconds, reverse=True)
        if times:
            middle = times[len(times) // 2][0]
            yield f"seconds: median {middle:.3f}, " + "; ".join(f"{took:.2f} {name}" for took, name in times[:5])
        for part, samples in sorted(self.memory.items()):
            slope, error = growth(samples)
            first, last = samples[len(samples) // 2][1], samples[-1][1]
            yield f"memory of {part}: {first} kB half-way, {last} at the end, {slope:+.0f} ± {error:.0f} a 1000 cases"
        yield f"faults: {len(self.faults)}"
        yield from self.faults[:50]


def growth(samples: list[tuple[int, int]]) -> tuple[float, float]:
    """Return the slope of memory over the second half of the cases, in kB a 1000 cases, and its standard error."""
    late = np.array(samples[len(samples) // 2 :], dtype=float)
    if len(late) < 4:
        return 0.0, float("inf")
    x, y = late[:, 0] / 1000, late[:, 1]
    slope, start = np.polyfit(x, y, 1)
    left = y - slope * x - start
    return float(slope), float(np.sqrt(left.var() * len(x) / (len(x) - 2) / ((x - x.mean()) ** 2).sum()))


class Runner:
    """A sender of cases to a stack."""

    def __init__(self, stack: StackProcess) -> None:
        self.stack, self.report = stack, Report()
        self._http = httpx.Client(base_url=stack.url, timeout=60, trust_env=False)
        self._pending: dict[str, tuple[Case, str]] = {}
        self._sent = 0
        version = seeds()["version/zip"]
        answer = self._http.post("/priors/tiny/versions/import", files=[("file", ("v.zip", version))])
        assert answer.status_code == 201, answer.text
        for name, data in seeds().items():  # or damage would prove nothing
            kind, _, suffix = name.partition("/")
            if kind in ("json", "version"):
                continue
            case = Case(0, kind, name, "nothing", f"a.{suffix}", data)
            answer = self._send(case)
            assert answer.status_code < 300, f"{name}: {answer.text}"
            self._follow(case, answer)

    def run(self, cases: Iterable[Case]) -> Report:
        """Send the cases, wait for what goes on in the background, and return the report."""
        self._measure()
        for case in cases:
            self._one(case)
            if self._sent % 50 == 0:
                self._measure()
                self._settle()
        deadline = time.monotonic() + 120
        while self._pending and time.monotonic() < deadline:
            self._settle()
            time.sleep(0.2)
        self.report.faults += [f"{case}: {path} has not ended" for path, (case, _) in self._pending.items()]
        self._http.close()
        return self.report

    def _one(self, case: Case) -> None:
        self._sent += 1
        took, answer = self._timed(case)
        allowed = DEADLINE_S
        for _ in range(3):  # a busy machine is no fault of the file
            if took > allowed:
                plain = replace(case, data=seeds()[case.format], name="plain")
                plain_s, plain_answer = self._timed(plain)
                self._check(plain, plain_answer)
                again_s, again = self._timed(case)
                took, answer, allowed = min(took, again_s), again, max(allowed, DEADLINE_S + plain_s)
        self.report.seconds.append((took, str(case)))
        if took > allowed:
            self.report.faults.append(f"{case}: took {took:.2f} s")
        for fault in self._check(case, answer):
            self.report.faults.append(f"{case}: {fault}: {answer.text[:500]}")

    def _timed(self, case: Case) -> tuple[float, httpx.Response]:
        began = time.monotonic()
        answer = self._send(case)
        return time.monotonic() - began, answer

    def _send(self, case: Case) -> httpx.Response:
        file = (case.name, case.data)
        match case.kind:
            case "picture":
                more = ({}, {"format": "coco"}, {"include": "overlay"}, {"locate": "off"})[case.number % 4]
                return self._form(
                    "/estimate", [("images", file), ("images", ("good.png", _GOOD))], category="tiny", **more
                )
            case "video":
                return self._form("/estimate", [("video", file)], category="tiny", every="1")
            case "archive":
                if case.number % 8 == 0:
                    return self._form(
                        "/train-jobs", [("archive", file)], category="cat", mode="stills", activate="false", **_TINY
                    )
                return self._form("/datasets", [("archive", file)], mode=("stills", "clips", "auto")[case.number % 3])
            case "labels":
                if case.number % 2:
                    archive = ("a.zip", seeds()["archive/zip"])
                    return self._form("/datasets", [("archive", archive), ("labels", file)])
                images = [("images", (f"{n}.png", encoded(picture(n), "PNG"))) for n in range(9)]
                return self._form("/priors/tiny/landmarks", [*images, ("labels", file)], name=f"a{case.number}")
            case "boxes":
                images = [("images", (f"{n}.png", _GOOD)) for n in range(2)]
                return self._form("/estimate", [*images, ("boxes", file)], category="tiny")
            case "prior":
                files = [("archive", ("a.zip", seeds()["archive/zip"])), ("prior", file)]
                return self._form(
                    "/train-jobs", files, category="cat", connectivity_prior="predefined", activate="false", **_TINY
                )
            case "version":
                return self._form("/priors/bad/versions/import", [("file", file)], activate="false")
        headers = {"content-type": "application/json"}
        method, path = {
            "train.json": ("POST", "/train-jobs"),
            "alias.json": ("PUT", "/priors/tiny/aliases/best"),
            "names.json": ("PUT", "/priors/tiny/keypoint-names"),
        }[case.format.partition("/")[2]]
        return self._http.request(method, path, content=case.data, headers=headers)

    def _form(self, path: str, files: list[tuple[str, tuple[str, bytes]]], **fields: Any) -> httpx.Response:
        """Send a form whose file names are written as they are, but for quotes, ends of lines and lone surrogates."""
        boundary, parts = uuid.uuid4().hex, []
        for name, value in fields.items():
            parts.append(f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        for name, (file_name, data) in files:
            safe = re.sub(r'["\r\n]', "%", file_name).encode("utf-8", "surrogatepass")
            head = (
                f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="'.encode()
                + safe
                + b'"\r\n\r\n'
            )
            parts += [head, data, b"\r\n"]
        body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        return self._http.post(
            path, content=body, headers={"content-type": f"multipart/form-data; boundary={boundary}"}
        )

    def _check(self, case: Case, answer: httpx.Response) -> Iterable[str]:
        """Yield what is wrong with an answer; follow up what was accepted."""
        outcome = str(answer.status_code)
        if "Traceback" in answer.text or str(self.stack.data_root) in answer.text:
            yield "shows the server's inside"
        if not answer.headers.get("x-request-id"):
            yield "no id"
        if answer.status_code >= 500:
            yield "a fault of the server"
        if answer.status_code >= 400:
            document = answer.json()
            outcome += f" {document['code']}"
            if not (document["detail"] and len(document["detail"]) < 2000):
                yield "no clear detail"
        elif case.kind in ("picture", "video", "boxes"):
            outcome, *faults = self._check_poses(case, answer)
            yield from faults
        elif case.kind == "version":
            outcome += " imported"
            yield from self._use_version()
        elif answer.status_code == 202 or case.kind in ("archive", "labels"):
            self._follow(case, answer)
        self.report.answers[case.format][outcome] += 1

    def _check_poses(self, case: Case, answer: httpx.Response) -> list[str]:
        document = answer.json()
        if "annotations" in document:
            return ["200 read"]
        errors, poses = document.get("errors", []), document["images"]
        if not all(error["detail"] and error["status"] < 500 for error in errors):
            return ["200", "an error without a detail, or of the server"]
        seen = {entry["index"] for entry in (*poses, *errors)}  # one with several boxes has several poses
        if case.kind != "video" and seen != {0, 1}:
            return ["200", "a picture is missing"]
        return ["200 named" if errors else "200 read"]

    def _use_version(self) -> Iterable[str]:
        """Look at and estimate with what was imported; a version that is there must work."""
        versions = self._http.get("/priors/bad/versions").json()["items"]
        for entry in versions:
            name = entry["version"]
            looks = [
                self._http.get(f"/priors/bad{part}", params={"version": name})
                for part in ("", "/memory", "/history", "/link-map", "/keypoint-names", "/landmarks")
            ]
            looks.append(
                self._http.get("/priors/bad/memory", params={"version": name, "bank": 0, "include": "vectors"})
            )
            looks.append(
                self._form(
                    "/estimate",
                    [("images", ("a.png", _GOOD))],
                    category="bad",
                    version=name,
                    refine_steps=2,
                    include="trajectory,codes,link_map",
                )
            )
            looks.append(self._http.get(f"/priors/bad/versions/{name}/export"))
            looks.append(self._http.delete(f"/priors/bad/versions/{name}"))
            for look in looks:
                if look.status_code >= 500:
                    yield f"imported, and then {look.request.url} answers {look.status_code} {look.text[:300]}"

    def _follow(self, case: Case, answer: httpx.Response) -> None:
        location = answer.headers.get("location")
        if location and "/landmarks/" in location:
            self._http.delete(location)
        elif location:
            self._pending[location] = (case, location)

    def _settle(self) -> None:
        """Look at what was accepted and is worked on; remove what has ended."""
        for path, (case, _) in list(self._pending.items()):
            document = self._http.get(path).json()
            if document.get("status") in (
                "inspecting",
                "queued",
                "validating",
                "preparing",
                "training",
                "running",
                "publishing",
            ):
                if path.startswith("/train-jobs"):
                    self._http.post(f"{path}/cancel")
                continue
            del self._pending[path]
            error = document.get("error")
            if error:
                kind = ERROR_BY_CODE.get(error["code"])
                is_fine = kind and (
                    kind.status < 500 or (issubclass(kind, JobFailed) and error["code"] != "training_failed")
                )
                if not is_fine or not error["detail"]:
                    self.report.faults.append(f"{case}: {path} failed: {error}")
            self.report.answers[f"{case.format} afterwards"][
                f"{document.get('status')} {(error and error['code']) or ''}"
            ] += 1
            self._http.delete(path)

    def _measure(self) -> None:
        for pid in children(self.stack.process.pid):
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                part = next(
                    (p for p in ("gateway", "worker inference", "worker training", "valkey") if p in name), "other"
                )
                if found := re.search(r"VmRSS:\s+(\d+)", status):
                    self.report.memory[part].append((self._sent, int(found[1])))
