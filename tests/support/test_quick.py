"""Which tests `make quick` runs for a change."""

from __future__ import annotations

import pytest

from .quick import ROOT, find_tests


def test_tests_of_a_module_come_before_those_of_its_room() -> None:
    found = find_tests(["service/estimates/batching.py"])

    assert found[0] == "tests/service/estimates/test_batching.py"
    assert "tests/service/estimates/test_estimate.py" in found[1:]
    assert not any(path.startswith(("tests/worker", "tests/integration")) for path in found)


def test_tests_elsewhere_that_name_the_module_are_among_them() -> None:
    found = find_tests(["service/contract/jobs/store.py"])

    assert found.index("tests/service/contract/jobs/test_jobs.py") < found.index(
        "tests/worker/training/test_training.py"
    )


def test_changed_test_comes_first_unless_it_starts_real_processes() -> None:
    changed = ["model/network/links.py", "tests/worker/test_main.py", "tests/integration/test_stack.py"]

    found = find_tests(changed)

    assert found[0] == "tests/worker/test_main.py"
    assert "tests/integration/test_stack.py" not in found


@pytest.mark.parametrize("room", ["model/network", "service/http", "worker/uploads", "benchmarks/accuracy"])
def test_new_file_of_a_room_has_the_tests_of_the_room(room: str) -> None:
    found = find_tests([f"{room}/new_file.py"])

    assert {ROOT / path for path in found} == {*(ROOT / "tests" / room).glob("test_*.py")}


def test_documents_have_their_tests() -> None:
    assert "tests/docs/test_readme.py" in find_tests(["README.md"])
    assert "tests/docker/test_files.py" in find_tests(["docker-compose.yml"])
