"""YAML files that operators write, read strictly: YAML itself would silently take the last of two equal keys."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

FILE_BYTES_MAX = 1_048_576
"""A wrong path, such as that of a log, must not fill the memory."""

_QUOTED = re.compile(r"'.*'", re.DOTALL)


class BadFile(ValueError):
    """A file that cannot be read, or is not a YAML mapping. The message names the file, and the line if it is known."""


class UniqueKeys(yaml.SafeLoader):
    """Refuses duplicate keys, and has no errors but those of YAML."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError):
            # A date such as 2026-13-01; the error would quote the value.
            raise yaml.constructor.ConstructorError(
                None, None, "a value that is not valid for its type", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class refuses it
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} appears twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in this file; an empty file is an empty one. Raises BadFile, which never quotes a value."""
    try:
        document = yaml.load(_read(path).decode(), UniqueKeys)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise BadFile(f"{path}: {_without_values(error)}") from None
    except RecursionError:
        raise BadFile(f"{path}: nested too deeply") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadFile(f"{path}: not a mapping of names to values")
    for name in document:
        if not isinstance(name, str):
            raise BadFile(f"{path}: {name!r} is not a name")
    return document


def _read(path: Path) -> bytes:
    """Raises OSError and BadFile."""
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise BadFile(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    return data


def _without_values(error: yaml.YAMLError) -> str:
    """The error and its line. What YAML quotes from the file is left out, because it may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "not YAML"
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{where}{_QUOTED.sub('...', error.problem or error.context or 'not YAML')}"
