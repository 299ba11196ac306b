"""The client's calls about versions and the names that point to them.

ppl.aliases.put("bird", "active", "20261123T064501-1f3a9c")      # roll back
ppl.versions.delete("bird", "20261124T081500-77ab21")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from .client_errors import APIError
from .client_types import AliasEntry, VersionEntry

if TYPE_CHECKING:
    from .client import Client

_UNKNOWN = "unknown_alias"


class AliasCalls:
    """Names that point to versions. Reached as ``client.aliases``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, category: str) -> Iterator[AliasEntry]:
        """``active`` first, the others by name."""
        return self._client.pages(f"{prior_path(category)}/aliases", AliasEntry)

    def get(self, category: str, alias: str) -> AliasEntry:
        """Where an alias points."""
        return self._client.read(AliasEntry, self._client.send("GET", _alias_path(category, alias)))

    def put(self, category: str, alias: str, version: str, expected: str | None = None) -> AliasEntry:
        """Point an alias to a version.

        Args:
            version: a version, or another alias that points to it.
            expected: the version that it must point to now, else nothing is changed and APIError is raised with
                the status 412; whatever it points to where None.
        """
        if expected is None:
            try:
                expected = self.get(category, alias).version
            except APIError as error:
                if error.code != _UNKNOWN:
                    raise
        headers = {"If-Match": f'"{expected}"'} if expected else {}
        answer = self._client.send("PUT", _alias_path(category, alias), json={"version": version}, headers=headers)
        return self._client.read(AliasEntry, answer)

    def delete(self, category: str, alias: str) -> None:
        """Remove an alias; its version stays. ``active`` can only be moved."""
        self._client.send("DELETE", _alias_path(category, alias))


class VersionCalls:
    """The versions of a category. Reached as ``client.versions``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, category: str) -> Iterator[VersionEntry]:
        """The newest first."""
        return self._client.pages(f"{prior_path(category)}/versions", VersionEntry)

    def delete(self, category: str, version: str) -> None:
        """Delete a version for good; one that an alias points to is refused."""
        self._client.send("DELETE", f"{prior_path(category)}/versions/{quoted(version)}")


def prior_path(category: str) -> str:
    """The address of a category's prior."""
    return f"/priors/{quoted(category)}"


def quoted(name: str) -> str:
    """A name as one part of an address."""
    return quote(name, safe="")


def _alias_path(category: str, alias: str) -> str:
    return f"{prior_path(category)}/aliases/{quoted(alias)}"
