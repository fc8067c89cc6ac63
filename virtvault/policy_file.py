"""Reading a policy file: YAML 1.2, every error with its line.

Nothing is turned silently into something else: ``yes``, ``22:30``, ``0644`` and dates are the text
that they are. Anchors and merge keys work; what grows by them without measure is refused.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterator
from typing import Any

from marshmallow import Schema, ValidationError
from marshmallow import fields as f
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from virtvault.errors import InvalidRequest
from virtvault.models import PolicyDocument
from virtvault.schemas.policies import PolicyDocumentSchema

__all__ = ["LARGEST", "read", "without"]

# Bytes of a file: what central can read within an answer's time. 5 000 uuids are smaller.
LARGEST = 2**18
# Values of a document with all its aliases written out.
MOST = 200_000
# Problems that are told at a time.
TOLD = 50
CORE = "tag:yaml.org,2002:"
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
# marshmallow's words, where ours say more.
WORDS = {
    "Missing data for required field": "is missing",
    "Field may not be null": "must not be empty",
    "Invalid input type": "must be a mapping of fields",
    "Not a valid mapping type": "must be a mapping of fields",
    "Not a valid list": 'must be a list, such as ["web-*"]',
    "Not a valid string": "must be text; put it into quotes",
    "Not a valid integer": "must be a whole number",
    "Not a valid boolean": "must be true or false",
}

Path = tuple[str | int, ...]


def read(text: str, where: str) -> PolicyDocument:
    """The policies in ``text``.

    :param where: the file's name, for errors.
    :raises InvalidRequest: each problem as ``WHERE:LINE: FIELD: what is wrong``, by lines.
    """
    problems: list[tuple[int, str]] = []
    lines: dict[Path, int] = {}
    root = _compose(text, where)
    reader = _Reader(lines, problems)
    try:
        data = reader.value(root, ())
    except _Endless:
        raise _refusal(problems, where) from None
    document: Any = None
    if isinstance(data, dict):
        try:
            document = PolicyDocumentSchema().load(data)
        except ValidationError as error:
            problems += [
                (_line(lines, path), f"{_dotted(path)}: {_said(path, words)}")
                for path, messages in _flat(error.messages)
                for words in messages
                if path not in reader.unread
            ]
    elif not problems:
        problems.append((root.start_mark.line, "must be a mapping with `policies:`"))
    if problems:
        raise _refusal(problems, where)
    assert isinstance(document, PolicyDocument)
    return document


def without(text: str, name: str, where: str) -> str:
    """The text of a file without one policy, its comments and all else as they were.

    :raises InvalidRequest: there is no such policy, or it cannot be taken out.
    """
    before = read(text, where)
    left = tuple(policy for policy in before.policies if policy.name != name)
    if len(left) == len(before.policies):
        known = ", ".join(policy.name for policy in before.policies) or "there is none"
        raise InvalidRequest(f"There is no policy {name!r}.", f"Known policies: {known}.")
    number = [policy.name for policy in before.policies].index(name)
    for shorter in (_cut(text, number, where), _rewritten(text, number)):
        try:
            if read(shorter, where) == PolicyDocument(left, before.limits):
                return shorter
        except InvalidRequest:
            continue  # others name what is defined in it
    raise InvalidRequest(
        f"Policy {name!r} cannot be taken out of the file by itself.",
        "`virtvault policy export`, take it out by hand, and apply that.",
    )


# -- YAML -----------------------------------------------------------------------------------------


def _compose(text: str, where: str) -> Node:
    if len(text.encode()) > LARGEST:
        raise InvalidRequest(
            f"{where}: larger than {LARGEST} bytes.", "Name domains by patterns or labels."
        )
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    try:
        root: Node | None = yaml.compose(text)
    except YAMLError as error:
        raise _refusal([_syntax(error, text)], where) from None
    except RecursionError:
        raise InvalidRequest(f"{where}: nested too deeply.", "Write it flat.") from None
    if root is None:
        raise _refusal([(0, "is empty: `policies:` and a list of them is needed")], where)
    return root


def _syntax(error: YAMLError, text: str) -> tuple[int, str]:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", "") or "unreadable")
    if mark is None:
        return text.count("\n", 0, getattr(error, "position", 0)), f"is not YAML: {problem}"
    if "'\\t'" in problem:
        problem = "there is a tab: indent by spaces"
    elif "another document" in problem:
        problem = "a second document begins: put all policies into one"
    context = getattr(error, "context", None)
    return mark.line, f"is not YAML: {problem}" + (f" ({context})" if context else "")


class _Endless(Exception):
    """A document that is endless by its aliases, or as good as that."""


class _Reader:
    """Makes plain data of nodes, and notes the line of each value."""

    def __init__(self, lines: dict[Path, int], problems: list[tuple[int, str]]) -> None:
        self._lines = lines
        self._problems = problems
        # Where there is something that could not be read, and so is not what is there.
        self.unread: set[Path] = set()
        self._count = 0
        self._open: list[Node] = []

    def value(self, node: Node, path: Path) -> Any:
        self._lines.setdefault(path, node.start_mark.line)
        self._count += 1
        if self._count > MOST or any(node is above for above in self._open):
            self._problems[:] = [(node.start_mark.line, "its aliases make it grow without measure")]
            raise _Endless
        if not (node.tag or "").startswith(CORE):
            self._problem(node, path, f"tags such as {node.tag} mean nothing here")
            self.unread.add(path)
            return None
        self._open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self.value(item, (*path, n)) for n, item in enumerate(node.value)]
            assert isinstance(node, ScalarNode)
            return _scalar(node)
        finally:
            self._open.pop()

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                self._problem(key, path, "a field's name must be text")
            elif key.tag == f"{CORE}merge" and key.style is None:
                merged = {**self._merged(item, path), **merged}
            elif key.value in found:
                first = self._lines[*path, key.value] + 1
                here = _dotted((*path, key.value))
                self._problem(key, (), f"{here}: is given twice (first in line {first})")
            else:
                self._lines[*path, key.value] = key.start_mark.line
                found[key.value] = self.value(item, (*path, key.value))
        return {**merged, **found}

    def _merged(self, node: Node, path: Path) -> dict[str, Any]:
        """What a merge key brings: of several the first holds."""
        merged: dict[str, Any] = {}
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.value(source, path) if isinstance(source, MappingNode) else None
            if not isinstance(value, dict):
                self._problem(source, path, "<< takes a mapping, or a list of them")
                return {}
            merged = {**value, **merged}
        return merged

    def _problem(self, node: Node, path: Path, words: str) -> None:
        self._problems.append((node.start_mark.line, _at(path) + words))


def _scalar(node: ScalarNode) -> Any:
    text = str(node.value)
    if node.style is not None or node.tag == f"{CORE}str":
        return text
    if text in CONSTANTS:
        return CONSTANTS[text]
    return int(text) if INTEGER.fullmatch(text) else text


# -- problems -------------------------------------------------------------------------------------


def _refusal(problems: list[tuple[int, str]], where: str) -> InvalidRequest:
    said = [f"{where}:{line + 1}: {words}" for line, words in sorted(set(problems))]
    if len(said) > TOLD:
        said[TOLD:] = [f"{where}: and {len(said) - TOLD} more"]
    head = [f"{where} has {len(said)} problems:"] if len(said) > 1 else []
    return InvalidRequest("\n".join(head + said), "Mend that; nothing was changed.")


def _flat(messages: Any, path: Path = ()) -> Iterator[tuple[Path, list[str]]]:
    if isinstance(messages, dict):
        for key, value in messages.items():
            yield from _flat(value, path if key == "_schema" else (*path, key))
    else:
        yield path, [str(words).rstrip(".") for words in messages]


def _line(lines: dict[Path, int], path: Path) -> int:
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _said(path: Path, words: str) -> str:
    if words != "Unknown field":
        return WORDS.get(words, words[:1].lower() + words[1:])
    known = sorted(_fields(path[:-1]))
    near = difflib.get_close_matches(str(path[-1]), known, 1, 0.7)
    meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"unknown field; {meant}"


def _fields(path: Path) -> list[str]:
    """The fields that are known at a place of the document."""
    schema: Schema = PolicyDocumentSchema()
    for step in path:
        if isinstance(step, str):
            field = schema.fields[step]
            inner = field.inner if isinstance(field, f.List) else field
            assert isinstance(inner, f.Nested)
            schema = inner.schema
    return list(schema.fields)


def _dotted(path: Path) -> str:
    """``policies[0].schedule.cron``."""
    # What marshmallow puts behind the key of a label.
    kept = path[:-1] if len(path) > 1 and path[-1] in ("key", "value") else path
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in kept)
    return text.removeprefix(".") or "the file"


def _at(path: Path) -> str:
    return f"{_dotted(path)}: " if path else ""


# -- taking a policy out --------------------------------------------------------------------------


def _cut(text: str, number: int, where: str) -> str:
    """Without the lines of one policy, and the comment right above it."""
    root = _compose(text, where)
    sequence = next(item for key, item in root.value if key.value == "policies")
    items = sequence.value
    if sequence.flow_style or len(items) == 1:
        return ""  # no lines of its own, or what is left is no list: left to the writer
    lines = text.splitlines(keepends=True)
    first = items[number].start_mark.line
    following = items[number + 1].start_mark if number + 1 < len(items) else sequence.end_mark
    last = following.line
    while last > first + 1 and re.match(r"\s*(#|$)", lines[last - 1]):
        last -= 1
    while re.match(r"\s*#", lines[first - 1]):
        first -= 1
    while number + 1 == len(items) and not lines[first - 1].strip():
        first -= 1  # what parted it from the one above
    return "".join(lines[:first] + lines[last:])


def _rewritten(text: str, number: int) -> str:
    """The same by a YAML writer: anchors move to where they are first needed."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1000
    data = yaml.load(text)
    del data["policies"][number]
    written = io.StringIO()
    yaml.dump(data, written)
    return written.getvalue()
