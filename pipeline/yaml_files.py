"""YAML files that operators write, read strictly: YAML itself would silently take the last of two equal keys."""

import re
from pathlib import Path
from typing import Any

import yaml

_QUOTED = re.compile(r"'.*'", re.DOTALL)


class BadFile(ValueError):
    """A file that cannot be read, or is not a YAML mapping. The message names the file, and the line if it is known."""


class UniqueKeys(yaml.SafeLoader):
    """Refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} appears twice", key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in this file; an empty file is an empty one. Raises BadFile, which never quotes a value."""
    try:
        document = yaml.load(path.read_text("utf-8"), UniqueKeys)  # noqa: S506 -- a SafeLoader
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        raise BadFile(f"{path}: {_without_values(error)}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise BadFile(f"{path}: not a mapping of names to values")
    for name in document:
        if not isinstance(name, str):
            raise BadFile(f"{path}: {name!r} is not a name")
    return document


def _without_values(error: yaml.YAMLError) -> str:
    """The error and its line. What YAML quotes from the file is left out, because it may be a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return "not YAML"
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{where}{_QUOTED.sub('...', error.problem or error.context or 'not YAML')}"
