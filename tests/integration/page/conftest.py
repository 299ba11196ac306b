"""One stack and one browser for all tests of the inspection page. Screenshots are kept in PPL_SCREENSHOTS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.stack_process import StackProcess


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    stack = StackProcess(tmp_path_factory.mktemp("page") / "data")
    yield stack
    stack.end()


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    from tests.support.page import open_browser

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
