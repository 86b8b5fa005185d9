"""Parse what `dataset` and `tokenizer` name: a Hub repository, local files, or a keyword."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.data.readers.formats import endings_of, is_saved


@dataclass(frozen=True)
class Source:
    """What a setting names.

    Attributes:
        kind: `toy` and `train` are keywords; a folder of `save_to_disk` is a `file`.
        name: the setting; the repository for `hub`.
        path: where the file or folder is, or the pattern; None for other kinds.
    """

    kind: Literal["hub", "file", "folder", "pattern", "toy", "train"]
    name: str
    path: Path | None = None

    @property
    def short_name(self) -> str:
        """Return the name without the folders above it, for records that are published."""
        return self.name if self.path is None else self.path.name


def parse_dataset(name: str) -> Source:
    """Return what the setting `dataset` names: a file, folder or pattern, else `owner/name`.

    Raises:
        UserError: it is a local path that does not exist or cannot be read.
    """
    if name == "toy":
        return Source("toy", name)
    path = local_path("dataset", name)
    with reporting_unreadable("dataset", path):
        if path.is_file() or is_saved(path):
            return Source("file", name, path)
        if path.is_dir():
            return Source("folder", name, path)
        if glob.has_magic(name):
            return Source("pattern", name, path)
    if _looks_local(name) or endings_of(path.name) or name.count("/") != 1:
        raise UserError(
            f"dataset: {name} does not exist; give an existing file or folder, owner/name of a"
            " dataset on the Hub, or `toy`"
        )
    return Source("hub", name)


def parse_tokenizer(name: str) -> Source:
    """Return what the setting `tokenizer` names: a folder, else `name` or `owner/name`.

    Raises:
        UserError: it is a file, or a local path that does not exist or cannot be read.
    """
    if name == "train":
        return Source("train", name)
    path = local_path("tokenizer", name)
    with reporting_unreadable("tokenizer", path):
        if path.is_dir():
            return Source("folder", name, path)
        exists = path.exists()
    if exists or _looks_local(name) or name.count("/") > 1:
        raise UserError(
            f"tokenizer: {name} is not a folder; give a folder or a repository on the Hub"
        )
    return Source("hub", name)


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~"))
