from __future__ import annotations

import errno
import os
import sys

import pytest

from tinystories_hf.core.environment import portable
from tinystories_hf.core.errors import EXIT_RUN_FAILED, EXIT_USER_ERROR, UserError
from tinystories_hf.core.script import report_user_errors


def test_user_error_becomes_one_line_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise UserError("hidden_size is odd; make it even")
    assert stop.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: hidden_size is odd; make it even\n"


def test_later_processes_say_who_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit), report_user_errors():
        raise UserError("no")
    assert capsys.readouterr().err == "error (process 3): no\n"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOLCK, errno.EMFILE])
def test_what_the_machine_refuses_is_one_line_too(
    capsys: pytest.CaptureFixture[str], code: int
) -> None:
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise OSError(code, os.strerror(code), "/data/rows")
    assert stop.value.code == EXIT_RUN_FAILED
    assert capsys.readouterr().err.startswith(f"error: /data/rows: {os.strerror(code)}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs the password database")
def test_a_user_without_a_home_is_one_line_unless_caches_have_a_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as stop, report_user_errors():
        raise AssertionError("nothing is begun")
    assert stop.value.code == EXIT_USER_ERROR
    assert "set HOME to a folder that can be written" in capsys.readouterr().err
    monkeypatch.setenv("HF_HOME", "/data")
    with report_user_errors():
        assert portable("~nobody-of-this-name") == "~nobody-of-this-name"
    assert portable("~nobody-of-this-name") == "~nobody-of-this-name"


def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(KeyError), report_user_errors():
        raise KeyError("a bug")
    with pytest.raises(FileNotFoundError), report_user_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file", "a bug")
