from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.training import checkpoints
from tinystories_hf.training.checkpoints import (
    CHECKPOINT_RECORD,
    check_disk_for_checkpoints,
    checkpoint_folders,
    delete_old_checkpoints,
    newest_valid_checkpoint,
    publish_checkpoint_folder,
    read_checkpoint,
    write_checkpoint_record,
    writing_checkpoint,
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": halve,
    "emptied": empty,
    "removed": Path.unlink,
    "a byte flipped": flip,
}


def test_a_saved_checkpoint_is_valid_and_contains_no_pickle_of_arguments(run_dir: Path) -> None:
    found = newest_valid_checkpoint(run_dir)
    assert found.skipped == []
    assert found.checkpoint is not None
    assert found.checkpoint.path.name == "checkpoint-20"
    assert found.checkpoint.record.step == 20
    names = {path.name for path in found.checkpoint.path.iterdir()}
    assert names == {*found.checkpoint.record.files, CHECKPOINT_RECORD}
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "progress.json"} <= names
    assert "training_args.bin" not in names
    assert not list(run_dir.glob(".unfinished*"))


def test_any_damage_is_detected_and_the_previous_checkpoint_is_used(
    run_dir: Path,
) -> None:
    newest = run_dir / "checkpoint-20"
    for path in sorted(newest.iterdir()):
        for name, damage in DAMAGES.items():
            kept = path.read_bytes()
            damage(path)
            found = newest_valid_checkpoint(run_dir)
            assert found.checkpoint is not None
            assert found.checkpoint.path.name == "checkpoint-10", (path.name, name)
            assert len(found.skipped) == 1
            assert str(newest) in found.skipped[0]
            assert path.name in found.skipped[0], (name, found.skipped)
            path.write_bytes(kept)
    assert newest_valid_checkpoint(run_dir).skipped == [], "an undamaged checkpoint is valid"


def test_a_checkpoint_renamed_to_another_step_is_not_valid(run_dir: Path) -> None:
    (run_dir / "checkpoint-20").rename(run_dir / "checkpoint-30")
    found = newest_valid_checkpoint(run_dir)
    assert found.checkpoint is not None
    assert found.checkpoint.path.name == "checkpoint-10"
    assert "is for step 20" in found.skipped[0]
    with pytest.raises(UserError, match=r"checkpoint-30 is not a valid checkpoint: its"):
        read_checkpoint(run_dir / "checkpoint-30")


def small(run_dir: Path, step: int) -> Path:
    with writing_checkpoint(run_dir, 0) as aside:
        folder = aside / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"weights of {step}")
        write_checkpoint_record(folder, step, {}, {})
        return publish_checkpoint_folder(folder, run_dir, step)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


def test_an_interrupted_save_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    small(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt), writing_checkpoint(tmp_path, 0) as aside:  # noqa: PT012
        (aside / "checkpoint-20").mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["checkpoint-10"]
    # A killed process does not clean up: the next save does.
    (tmp_path / checkpoints.TEMPORARY_FOLDER / "checkpoint-20").mkdir(parents=True)
    found = newest_valid_checkpoint(tmp_path)
    assert found.checkpoint is not None
    assert (found.checkpoint.path.name, found.skipped) == ("checkpoint-10", [])
    small(tmp_path, 20)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20"]


def test_a_damaged_checkpoint_is_kept_when_its_step_is_saved_again(tmp_path: Path) -> None:
    for number in (1, 2):
        path = small(tmp_path, 10)
        (path / "model.safetensors").write_text(f"damage {number}")
    small(tmp_path, 10)
    assert names(tmp_path) == ["checkpoint-10", "damaged-checkpoint-10", "damaged-checkpoint-10-2"]
    assert (tmp_path / "damaged-checkpoint-10/model.safetensors").read_text() == "damage 1"
    small(tmp_path, 10)
    assert len(names(tmp_path)) == 3, "a valid one is replaced"


def test_only_valid_checkpoints_count_for_the_limit(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        small(tmp_path, step)
    (tmp_path / "checkpoint-15" / "model.safetensors").write_text("damage")
    delete_old_checkpoints(tmp_path, 20, None)
    delete_old_checkpoints(tmp_path, 20, 2)
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        "checkpoint-20",
        "checkpoint-15",
        "checkpoint-10",
    ]


def test_the_checkpoint_just_saved_is_kept_although_a_newer_one_looks_valid(tmp_path: Path) -> None:
    for step in (10, 15, 20):
        small(tmp_path, step)
    flip(tmp_path / "checkpoint-20" / "model.safetensors")  # so the run resumed from 10
    delete_old_checkpoints(tmp_path, 15, 1)
    assert names(tmp_path) == ["checkpoint-15", "checkpoint-20"]
    small(tmp_path, 20)
    delete_old_checkpoints(tmp_path, 20, 1)
    assert names(tmp_path) == ["checkpoint-20", "damaged-checkpoint-20"]


def test_too_little_disk_space_is_reported_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path, 10)
    free = shutil.disk_usage(tmp_path).free
    full = pytest.raises(RunError, match=r"a checkpoint needs .* MB are free; free disk space")
    with full, writing_checkpoint(tmp_path, 2 * free):
        pass
    assert names(tmp_path) == ["checkpoint-10"]
    check_disk_for_checkpoints(tmp_path, 1000, 2)
    with pytest.raises(UserError, match="output_dir: 2 checkpoints and the model need"):
        check_disk_for_checkpoints(tmp_path, free // 12, 2)
