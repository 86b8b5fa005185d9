from __future__ import annotations

from pathlib import Path

from tinystories_hf.evaluation.report.plots import plot_loss


def test_the_loss_is_plotted_with_and_without_evaluations(tmp_path: Path) -> None:
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    plot_loss(history, tmp_path / "both.png", "a run")
    plot_loss(history[:1], tmp_path / "one.png", "a run")
    for name in ("both.png", "one.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "one.png").read_bytes()
