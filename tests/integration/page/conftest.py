"""One stack and one browser for the tests of a file of the inspection page. Screenshots are kept in PPL_SCREENSHOTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.stack_process import StackProcess


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    stack = StackProcess(tmp_path_factory.mktemp("page") / "data")
    yield stack
    stack.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.support.page import open_browser

    # ended with the file: until then its loop runs in this thread, and no asynchronous test can
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visit(stack: StackProcess, browser: Any) -> Iterator[Callable[..., Any]]:
    from tests.support.page import Visitor

    opened = []

    def make(width: int = 1280, theme: str = "light") -> Visitor:
        opened.append(Visitor(browser, stack.url, width, theme))
        return opened[-1]

    yield make
    for visitor in opened:
        visitor.close()
