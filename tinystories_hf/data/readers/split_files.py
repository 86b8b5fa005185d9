"""Assign files to splits by the words in their names, their shard numbers, or a pattern.

Names are relative to a folder and use `/`. A folder with a saved dataset counts as one file.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tinystories_hf.core.console import print_note_once
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.readers.formats import KINDS, endings_of, format_of

# Equal to data_files.SPLIT_KEYWORDS of `datasets`, which takes seconds to import.
KEYWORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_OF = re.compile(r"(?P<head>.*?)(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?(?P<tail>\D*)")
# A number not next to letters, or at the end of the name; `v2` is a version, not a shard.
_NUMBERED = re.compile(
    r"(?P<head>(?:.*[^0-9A-Za-z])?)(?P<number>\d+)(?P<tail>(?:[^0-9A-Za-z]\D*)?)"
    r"|(?P<word>.*[A-Za-z])(?<![vV])(?P<last>\d+)"
)
SEVERAL = "several"
# JSON files of saved datasets, runs and models, which contain no stories.
NO_DATA = {
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("train_results.json", "eval_results.json", "all_results.json", "trainer_state.json"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("added_tokens.json", "special_tokens_map.json", "run.json", "manifest.json"),
}
NAMES_SHOWN = 8


@dataclass(frozen=True)
class Shard:
    """The shard information in a file's name: the name that all shards share, and the number."""

    common: str
    number: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class SplitFiles:
    """The names of the files of each split, and of the files that are not read."""

    train: list[str]
    validation: list[str]
    left: list[str]


def shard_of(name: str) -> Shard:
    """Parse a file name: `data/train-00001-of-00004-2d5a.parquet` is shard 1 of 4."""
    path = PurePosixPath(name)
    endings = endings_of(path.name)
    stem = path.name.removesuffix(endings)
    if found := _OF.fullmatch(stem):
        count = int(found["count"])
        common = f"{found['head']}#-of-{count}{found['tail']}"
        number = int(found["number"])
    elif found := _NUMBERED.fullmatch(stem):
        count = None
        common = f"{found['head'] or found['word'] or ''}#{found['tail'] or ''}"
        number = int(found["number"] or found["last"])
    else:
        return Shard(str(path).lower())
    return Shard(str(path.parent / (common + endings)).lower(), number, count)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names with their numbers in numeric order: `train-2` before `train-10`."""
    return sorted(
        names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
    )


def other_shards(name: str, beside: Iterable[str]) -> list[str]:
    """Return the other shards of the file that `name` is a shard of."""
    own = shard_of(name)
    found = [other for other in beside if other != name and shard_of(other).common == own.common]
    return in_order(found) if own.number is not None else []


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the name itself if it exists, else the readable names that match it as a pattern."""
    names = list(names)
    if pattern in names:
        return [pattern]
    return in_order(name for name in fnmatch.filter(names, pattern) if format_of(name))


def split_of(name: str) -> str | None:
    """Return the split whose keyword is in a name, None if there is none."""
    return _split_of(name)[0]


def find_splits(
    where: str, names: Sequence[str], train: list[str] | None, validation: list[str] | None
) -> SplitFiles:
    """Find the training and validation files among the files of a folder.

    In a folder with the layout of `datasets` (`data/train-00000-of-00001`), these files are used.
    Otherwise, training files are those in the fewest subfolders, and validation files are at the
    same depth, so that a run or another corpus in a subfolder is not mixed in. If no name has the
    keyword of a split and all files are shards of one file, they are the training split.

    Args:
        where: the folder, for error messages.
        names: the names of all files in the folder.
        train: the training files if they were chosen by a setting, else None.
        validation: the validation files if they were chosen by a setting, else None.

    Raises:
        UserError: it is ambiguous which files form a split, or a shard is missing.
    """
    files = [name for name in names if format_of(name) and name.rpartition("/")[2] not in NO_DATA]
    by_layout = train is None and validation is None
    groups: dict[str, dict[str, list[str]]] = {split: {} for split in KEYWORDS}
    for name in files:
        split, common = _split_of(name)
        if split in groups:
            groups[split].setdefault(common, []).append(name)
    if train is None:
        found = _highest(groups["train"] or _wordless(files))
        if not found:
            raise UserError(
                f"dataset: no file in {where} has `train` in its name; choose one with train_file"
                f" (found: {shown(files or names)}; supported formats: {KINDS})"
            )
        if by_layout:
            found = _laid_out(groups["train"]) or found
        train = _one_group(where, "train_file", found)
        depth = _depth(next(iter(found)))
    else:
        depth = _depth(train[0])
    if validation is None:
        found = {c: group for c, group in groups["validation"].items() if _depth(c) == depth}
        if by_layout:
            found = _laid_out(found) or found
        validation = _one_group(where, "validation_file", found)
    taken = {*train, *validation}
    return SplitFiles(train, validation, [name for name in names if name not in taken])


def _depth(name: str) -> int:
    return name.count("/")


def _highest(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the groups in the fewest subfolders."""
    highest = min(map(_depth, groups), default=0)
    return {common: group for common, group in groups.items() if _depth(common) == highest}


def _laid_out(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the groups with the layout that `datasets` writes."""
    return {c: group for c, group in groups.items() if re.match(r"data/[a-z]+-#-of-\d+\.", c)}


def _wordless(files: Sequence[str]) -> dict[str, list[str]]:
    """Group the files in the fewest subfolders by shared name; empty if one has a split keyword."""
    highest = min((_depth(name.rstrip("/")) for name in files), default=0)
    groups: dict[str, list[str]] = {}
    for name in files:
        if _depth(name.rstrip("/")) == highest:
            if split_of(name) is not None:
                return {}
            groups.setdefault(shard_of(name).common, []).append(name)
    return groups


def _split_of(name: str) -> tuple[str | None, str]:
    """Return the split whose keyword is in a name, and the part that the split's files share.

    The file's own name is searched first, then its folders from the nearest. The split is None
    without a keyword, and `SEVERAL` with keywords of several splits.
    """
    path = PurePosixPath(name)
    endings = endings_of(path.name)
    places = [(path.name.removesuffix(endings), shard_of(name).common)]
    places += [(folder.name, f"{folder}/*{endings.lower()}") for folder in path.parents]
    for part, common in places:
        words = set(re.split(r"[^a-z]+", part.lower()))
        found = [split for split, keys in KEYWORDS.items() if words & keys]
        if found:
            return found[0] if len(found) == 1 else SEVERAL, common
    return None, name


def _one_group(where: str, key: str, groups: dict[str, list[str]]) -> list[str]:
    """Return the files of the only group.

    Raises:
        UserError: there are several groups, or a shard is missing.
    """
    if len(groups) > 1:
        names = [name for group in groups.values() for name in group]
        raise UserError(
            f"dataset: several files in {where} match ({shown(names)}); set {key} to a name or a"
            " pattern such as '*.txt'"
        )
    names = in_order(next(iter(groups.values()), []))
    shards = [shard_of(name) for name in names]
    if shards and all(shard.common == shards[0].common for shard in shards):
        numbers, count = {shard.number for shard in shards}, shards[0].count or len(shards)
        alone = shards[0].count is None and len(shards) == 1
        if not alone and numbers not in (set(range(count)), set(range(1, count + 1))):
            raise UserError(
                f"dataset: some shards are missing in {where} (found: {shown(names)}); add them,"
                f" or choose the existing ones with {key}, such as '{_pattern(names)}'"
            )
    return names


def _pattern(names: Sequence[str]) -> str:
    """Return a pattern that matches the shards of one file."""
    return re.sub(r"\d+.*?(?=\.|$)", "*", names[0], count=1)


def shown(names: Collection[str]) -> str:
    """Return names for a message, only the first few of many."""
    few = in_order(names)[:NAMES_SHOWN]
    more = f" and {len(names) - len(few):,} more" if len(names) > len(few) else ""
    return (", ".join(few) or "none") + more


def described_left(names: Collection[str]) -> str:
    """Return the names of files that are not read for a message; test splits are marked."""
    return shown([f"{name} (test)" if split_of(name) == "test" else name for name in names])


def note_single_shard(name: str, others: list[str]) -> None:
    """Print a note if a file is one of several shards; `others` are the shards beside it."""
    count = shard_of(name).count
    if others or (count or 1) > 1:
        rest = f" without {shown(others)}" if others else " alone"
        of = f" of {count}" if count else ""
        print_note_once(
            f"{name} is one shard{of} and is read{rest}; to read all shards, give a folder or a"
            " pattern"
        )
