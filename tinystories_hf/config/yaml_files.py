"""Read YAML configuration files and their `base:` files as layers of settings."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tinystories_hf.config.parsing import Setting, brief
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.shipped import shipped

# The longest configuration of this package has 4 kB. PyYAML parses about 100 kB per second, and
# nested content more slowly.
MAX_YAML_BYTES = 1 << 18


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that rejects duplicate keys; PyYAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML raises an error
            if key in seen:
                raise UserError(f"{self.name}: duplicate key {brief(key)}; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a flat YAML file of settings.

    Raises:
        UserError: the file is missing, unreadable, too large, empty, not UTF-8, not valid YAML or
            not a mapping, or it has duplicate keys.
    """
    try:
        if not path.is_file():
            names = ", ".join(sorted(found.stem for found in shipped("configs").glob("*.yaml")))
            raise UserError(
                f"configuration file {path} not found; give the path of a YAML file, or the name of"
                f" a configuration of this package: {names}"
            )
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path} is too large for a configuration file; check the path")
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_UniqueKeyLoader)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UserError(
            f"{path} is nested too deeply; it must contain `key: value` lines"
        ) from None
    except Exception as error:  # PyYAML passes on errors of Python, such as for 2024-02-30
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise UserError(f"{path} is empty; add at least one setting, such as `base: xs.yaml`")
    if not isinstance(content, dict):
        raise UserError(f"{path} must contain `key: value` lines, not a {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {brief(key)} is not the name of a setting; remove it")
    return content


def find_config(name: str, folder: Path = Path()) -> Path:
    """Return the path of a configuration: a file in `folder`, or one that this package ships."""
    if re.fullmatch(r"[\w-]{1,50}", name) and not (folder / name).exists():
        ours = shipped("configs") / f"{name}.yaml"
        if ours.is_file():
            return ours
    return folder / name


def yaml_layers(path: Path, *, _below: tuple[Path, ...] = ()) -> list[dict[str, Setting]]:
    """Return the layers of a YAML file: first its `base:` file, if it has one, then its own.

    `path` and each `base:` are the path of a file or the name of a configuration of this package;
    the path of a `base:` is relative to the file that contains it.

    Raises:
        UserError: a file cannot be read (see `read_yaml`), or the `base:` entries form a cycle.
    """
    path = find_config(str(path))
    content = read_yaml(path)
    if path.resolve() in _below:
        raise UserError(
            f"{path}: its `base:` leads back to itself; remove a `base:` from the cycle"
        )
    base = content.pop("base", None)
    layers: list[dict[str, Setting]] = []
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: expected the path of a YAML file, got {brief(base)}")
        layers = yaml_layers(find_config(base, path.parent), _below=(*_below, path.resolve()))
    layers.append({key: Setting(value, f"{path}: {key}") for key, value in content.items()})
    return layers
