from __future__ import annotations

import errno
import os

import pytest

from tinystories_hf.errors import EXIT_RUN_FAILED, EXIT_USER_ERROR, UserError, report_user_errors


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
    assert capsys.readouterr().err == f"error: /data/rows: {os.strerror(code)}\n"


def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(KeyError), report_user_errors():
        raise KeyError("a bug")
    with pytest.raises(FileNotFoundError), report_user_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file", "a bug")
