"""The answer of ``query-qmp-schema``, walked by meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Schema"]


class Schema:
    """What a QEMU's commands take and return.

    Its entries refer to each other by names that QEMU makes up anew for each build ("17", "[42]"),
    so every walk begins at a command. What is not there has no members.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._entries = {entry["name"]: entry for entry in entries}

    def takes(self, command: str) -> str:
        """The name of the type that a command's arguments make up."""
        return str(self._entry(command).get("arg-type", ""))

    def arguments(self, command: str) -> dict[str, str]:
        """The arguments of a command, with the names of their types."""
        return self.members(self.takes(command))

    def returned(self, command: str) -> dict[str, str]:
        """The members of what a command returns, or of each item where that is a list."""
        return self.members(self.item(str(self._entry(command).get("ret-type", ""))))

    def members(self, name: str) -> dict[str, str]:
        """The members of an object type, with the names of their types."""
        if self.kind(name) != "object":
            return {}
        return {member["name"]: member["type"] for member in self._entry(name)["members"]}

    def cases(self, union: str) -> dict[str, str]:
        """The values of an object type's tag, each with the type of what it brings along."""
        return {each["case"]: each["type"] for each in self._entry(union).get("variants", ())}

    def branch(self, union: str, case: str) -> dict[str, str]:
        """The members that an object type has besides its own where its tag is ``case``."""
        return self.members(self.cases(union).get(case, ""))

    def item(self, name: str) -> str:
        """The type of the items of a list type; any other type is its own item."""
        return str(self._entry(name).get("element-type", name))

    def kind(self, name: str) -> str:
        """A type's meta-type: "object", "enum", "alternate", "array", "builtin" …"""
        return str(self._entry(name).get("meta-type", ""))

    def _entry(self, name: str) -> Mapping[str, Any]:
        return self._entries.get(name, {})
