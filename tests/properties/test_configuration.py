"""Any configuration or command line gives valid settings or a one-sentence error.

Types and values are checked by an independent implementation, not by the package.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from hypothesis import strategies as st

from tests.conftest import TINY_CONFIG
from tests.properties.drawing import holds_for
from tinystories_hf.config.command_line import GROUPS, Arguments, parse_arguments
from tinystories_hf.config.parsing import settings_of
from tinystories_hf.core.errors import UserError

TINY = yaml.safe_load(TINY_CONFIG)
HINTS = {
    one.name: get_type_hints(cls)[one.name] for cls in GROUPS.values() for one in settings_of(cls)
}
NAMES = sorted(HINTS)
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
BOMB = "a0: &a0 [x]\n" + ALIASES
DEEP = "[" * 600 + "]" * 600
# Lines that YAML parsers are known to fail on.
ODD_VALUES = (
    *("", "~", "null", "[]", "{}", "{a: 1}", "[[1]]", "yes", "off", "=", "<<", "|", ">", "%", "@"),
    *("1e400", "1e4", ".nan", "-.inf", "0x" + "f" * 5000, "9" * 400, "9" * 5000, "1_0", "12:30"),
    *("0b", "0x", "0o8", "+", "2024-02-30", "2024-02-29", "0001-01-01T00:00:00+23:59", "é", "🙂"),
    *("!!int ''", "!!int x", "!!float ''", "!!bool maybe", "!!timestamp x", "!!binary '&'"),
    *("!!map x", "!!map [1]", "!!set x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1, a: 2]"),
    *("!!python/object:os.system x", "!!python/object/apply:os.getcwd []", "!none x", "!!str [a]"),
    *("&a [*a]", "&a {x: *a}", "*a", "&a", "{<<: {seed: 1}}", "{? [a] : b}", "{a: 1, a: 2}", DEEP),
    *(r'"\0"', r'"\ud800"', r'"\x1b[31m"', "'", '"', "[", "]", "a: b", "- a", "\t", "\0", "\x85"),
)
ODD_LINES = (
    *("? [a]\n: b", "? {a: b}\n: c", "? &a [*a]\n: b", "<<: {seed: 1}", "<<: [1]", "<<: x", "1: 2"),
    *(
        "2024-01-01: a",
        "true: a",
        "null: a",
        "0x" + "f" * 5000 + ": a",
        ".nan: a",
        "!!binary aa: a",
    ),
    *("---", "...", "%YAML 9.9", "# é", "\t", "\r", "\0", "\ufeff", "- a", "a", "seed: 1\nseed: 2"),
    *(BOMB, BOMB + "run_name: *a11", BOMB + "report_to: *a11", "? " + "x" * 3000 + "\n: a"),
    *("? [*a, *a]\n: 1", "&b [x]: 1\n*b : 2", "base: ./", "base: [a]", "base: 1", "base: ~"),
)


def outcome(*argv: str, named: tuple[str, ...]) -> Arguments | None:
    """Return the parsed settings, or None after one error that names one of the inputs."""
    message = ""
    try:
        parsed = parse_arguments(list(argv))
    except UserError as error:
        message = str(error)
    if message:
        missing = " is not set; add `" in message  # the error names a key that was not given
        assert missing or any(name in message for name in named), f"{message} names none of {named}"
        assert len(message) < 10_000 + sum(map(len, argv)), "cut short, whatever was given"
        return None
    group: Any
    for group, cls in zip(parsed, GROUPS.values(), strict=True):
        assert type(group) is cls
        hints = get_type_hints(cls)
        for name, hint in ((one.name, hints[one.name]) for one in settings_of(cls)):
            assert fits(getattr(group, name), hint), f"{name} = {getattr(group, name)!r}"
        assert dataclasses.replace(group) == group, "passes its own checks"
    return parsed


def values_of(parsed: Arguments) -> dict[str, Any]:
    """Return every setting by its name."""
    return {name: value for group in parsed for name, value in vars(group).items()}


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value has exactly a declared type: a bool is not an int."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, member) for member in get_args(hint))
    if get_origin(hint) is Literal:
        return type(value) is str and get_args(hint).count(value) == 1
    if get_origin(hint) is list:
        return type(value) is list and all(fits(item, str) for item in value)
    if hint is str:
        return (
            type(value) is str and b"\0" not in value.encode()
        )  # an unpaired surrogate would raise
    if hint is int:
        return type(value) is int and -(2**63) <= value < 2**63
    return type(value) is hint and (hint is not float or math.isfinite(value))


def means(raw: Any, value: Any) -> bool:
    """Return whether a setting may result from such a raw value."""
    if isinstance(raw, str) and raw in ("null", "none", "None"):
        return value is None
    if isinstance(raw, str) and type(value) in (int, float):
        return bool(float(raw) == value)
    if isinstance(raw, str) and type(value) is bool:
        return raw.lower() == str(value).lower()
    return bool(raw == value) and (type(raw) is bool) == (type(value) is bool)


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "settings.yaml"
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    return path


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -(10**400), 2**63, -(2**63), 0, 1, 2, 64])
    | st.floats()
    | st.floats(0, 1)
    | st.text(max_size=8)
    | st.sampled_from(["1e400", "5e-4", "nan", "none", "True", "auto", "linear", "global", "١٢"])
    | st.binary(max_size=4)
    | st.dates(datetime.date(1, 1, 1))
    | st.datetimes()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def suiting(hint: Any) -> st.SearchStrategy[Any]:
    """Return values of a declared type, most of them in the range of the setting."""
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of([suiting(member) for member in get_args(hint)])
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.sampled_from([["global"], ["local", "global"], ["tensorboard"]])
    drawn: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans() | st.sampled_from(["true", "False"]),
        int: st.sampled_from([64, 320, 2**31]) | st.integers(1, 99).map(str),
        float: st.floats(1e-9, 1, exclude_max=True) | st.sampled_from(["5e-4", 2, 100]),
        str: st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        types.NoneType: st.none() | st.just("null"),
    }
    return drawn[hint]


settings = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(st.just(name), suiting(HINTS[name]) | suiting(HINTS[name]) | values)
)
yaml_text = st.text(st.sampled_from("ab1 \t\n\r-?:,[]{}#&*!|>'\"%@`~.<=\0\ufeff\x85\u2028é🙂_0x"))


@holds_for(150, text=yaml_text | st.text() | st.lists(st.sampled_from(ODD_LINES)).map("\n".join))
def test_any_text_as_yaml_is_refused_with_the_name_of_the_file(folder: Path, text: str) -> None:
    path = write(folder, text)
    assert outcome("--config", str(path), named=(str(folder),)) is None


@holds_for(100, content=st.binary(max_size=200), behind=st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_any_bytes_as_yaml_are_refused_with_the_name_of_the_file(
    folder: Path, content: bytes, behind: bytes
) -> None:
    path = write(folder, behind + content)
    assert outcome("--config", str(path), named=(str(folder),)) is None


@holds_for(300, changes=st.lists(settings, min_size=1, max_size=3).map(dict))
def test_a_value_of_any_type_is_taken_as_it_is_or_refused_by_key(
    folder: Path, changes: dict[str, Any]
) -> None:
    path = write(folder, yaml.safe_dump({**TINY, **changes}, allow_unicode=True))
    parsed = outcome("--config", str(path), named=tuple(changes))
    if parsed is not None:
        found = {name: value for group in parsed for name, value in vars(group).items()}
        for name, raw in changes.items():
            assert means(raw, found[name]), f"{name}: {raw!r} became {found[name]!r}"


@holds_for(
    150,
    name=st.sampled_from(NAMES * 9 + ["", "é", "nam", "n: 1", "true"]),
    value=st.sampled_from(ODD_VALUES),
    lines=st.just([]) | st.lists(st.sampled_from(ODD_LINES), max_size=1),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.sampled_from(["", "\ufeff"]),
)
def test_odd_yaml_beside_good_settings(
    folder: Path, name: str, value: str, lines: list[str], ends: str, bom: str
) -> None:
    kept = yaml.safe_dump({key: good for key, good in TINY.items() if key != name})
    text = bom + kept + "\n".join([f"{name}: {value}", *lines])
    path = write(folder, text.replace("\n", ends))
    parsed = outcome("--config", str(path), named=(str(folder), *filter(None, [name])))
    assert not (lines and parsed and lines[0][:4] in ("2024", "a0: ")), "an unknown key"


@holds_for(
    150,
    bases=st.lists(
        st.sampled_from(["a.yaml", "b.yaml", "./a.yaml", "c/../b.yaml", *["c/d.yaml"] * 6])
        | st.sampled_from(["", ".", "c", "..", "no", "bytes.yaml", "ring.yaml", "~", "x" * 300])
        | st.just("x/" * 3000)
        | st.text(max_size=4),
        min_size=3,
        max_size=3,
    ),
    seeds=st.lists(st.integers(0, 99), min_size=3, max_size=3),
)
def test_chains_of_bases_are_resolved_or_refused(
    folder: Path, bases: list[str], seeds: list[int]
) -> None:
    (folder / "c").mkdir()
    (folder / "bytes.yaml").write_bytes(b"\xff\0")
    (folder / "ring.yaml").symlink_to("ring.yaml")
    (folder / "c" / "d.yaml").write_text(TINY_CONFIG)
    names = ("settings.yaml", "a.yaml", "b.yaml")
    for name, base, seed in zip(names, bases, seeds, strict=True):
        content = yaml.safe_dump({"base": base, "seed": seed}, allow_unicode=True)
        (folder / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    absolute = (base for base in bases if base.startswith("/"))
    parsed = outcome("--config", str(folder / "settings.yaml"), named=(str(folder), *absolute))
    if parsed is not None:
        assert parsed.training.seed == seeds[0], "the nearest file wins"
        assert parsed.model.hidden_size == 32, "and the deepest fills in"


flags = st.sampled_from([f"--{name}" for name in NAMES])
words = (
    st.sampled_from(["1", "-1", "0", "2.5", "-1e-3", "1e400", "9" * 5000, "true", "False", "null"])
    | st.sampled_from(
        ["--", "-", "", "-x", "--config", "--seed=", "--seed=7", "--bf16", "--hub_token=x"]
    )
    | st.sampled_from(["\udcff", "a\0b", "global", "cosine", "%", "%(prog)s", "\n", "--sed", "@a"])
    | st.text(max_size=6).filter(lambda word: not word.startswith("-h"))
)


@holds_for(
    200,
    pairs=st.lists(st.tuples(flags, st.lists(words, max_size=2)) | st.tuples(words), max_size=3),
)
def test_any_command_line_is_understood_or_refused_by_flag(
    folder: Path, pairs: list[tuple[Any, ...]]
) -> None:
    argv = [
        word
        for pair in pairs
        for part in pair
        for word in ([part] if isinstance(part, str) else part)
    ]
    path = write(folder, TINY_CONFIG)
    named = [word.partition("=")[0].strip("-") for word in argv if word.strip("-")]
    parsed = outcome("--config", str(path), *argv, named=(*named, "unknown flag", "--config"))
    plain = values_of(parse_arguments(["--config", str(path)]))
    found = plain if parsed is None else values_of(parsed)
    changed = {name for name in NAMES if found[name] != plain[name]}
    assert changed <= set(named), "nothing but what a flag names is changed"


numbers = (
    st.floats().map(repr)
    | st.integers().map(str)
    | st.from_regex(r"\s?[+-]?[0-9_]{1,4}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?\s?", fullmatch=True)
)


@holds_for(150, name=st.sampled_from(["learning_rate", "seed", "weight_decay"]), text=numbers)
def test_numbers_parse_like_python(folder: Path, name: str, text: str) -> None:
    path = write(folder, TINY_CONFIG)
    parsed = outcome("--config", str(path), f"--{name}={text}", named=(name,))
    try:
        number = int(text) if name == "seed" else float(text)
    except ValueError:
        number = math.nan
    # A learning rate must not be zero; a seed must be valid for NumPy.
    lowest, below = {"learning_rate": (5e-324, math.inf), "seed": (0, 2**32)}.get(
        name, (0, math.inf)
    )
    assert (parsed is not None) == (lowest <= number < below)
    if parsed is not None:
        assert getattr(parsed.training, name) == number
