"""What the fields do that are passed through to the Trainer of Transformers."""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.forked import train_forked
from tests.training.test_resume import AskToStop, log_of, train_here
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import device
from tinystories_hf.core.errors import Stopped, UserError
from tinystories_hf.model import kernels
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_config
from tinystories_hf.training import session, trainer_arguments
from tinystories_hf.training.batch import plan_batch
from tinystories_hf.training.signals import StopRequest
from tinystories_hf.training.train import train
from tinystories_hf.training.trainer import StoryTrainer

Parse = Callable[..., Arguments]
DROPOUT = ("--attention_dropout", "0.1", "--resid_dropout", "0.1")
BASE = ("--max_steps", "12", "--eval_steps", "4", "--save_steps", "4", "--logging_steps", "3")
KINDS = {
    "adafactor, warmup_stable_decay": (
        *("--optim", "adafactor", "--lr_scheduler_type", "warmup_stable_decay"),
        *("--lr_scheduler_kwargs", '{"num_decay_steps": 3}', "--warmup_steps", "2"),
    ),
    "sgd, cosine_with_min_lr, checkpointing": (
        *("--optim", "sgd", "--gradient_checkpointing"),
        *("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-4}'),
    ),
    "rmsprop, reduce_lr_on_plateau": (
        *("--optim", "rmsprop", "--lr_scheduler_type", "reduce_lr_on_plateau"),
        *("--lr_scheduler_kwargs", '{"patience": 0, "factor": 0.5, "threshold": 0.3}'),
    ),
    "the best of all": (
        *("--load_best_model_at_end", "--learning_rate", "0.3"),
        *("--lr_scheduler_type", "constant"),
    ),
    "saved if best": (
        *("--save_strategy", "best", "--load_best_model_at_end", "--eval_on_start"),
        *("--learning_rate", "0.05", "--logging_first_step"),
    ),
    "noise": ("--neftune_noise_alpha", "5"),
}


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_file(folder / "model.safetensors")
    return found


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_resumes_bit_identically(
    tiny_arguments: Parse, tmp_path: Path, kind: str
) -> None:
    """Stopped between two evaluations, and in the middle of one that a checkpoint follows."""
    flags = (*BASE, *DROPOUT, *KINDS[kind])
    whole = train_here(tiny_arguments(*flags, "--output_dir", str(tmp_path / "whole")))
    stops = [("on_step_end", 5), ("on_prediction_step", 8)]
    if "best" not in kind and "plateau" not in kind:  # evaluations decide nothing
        stops = stops[:1]
    for event, step in stops:
        place = ("--output_dir", str(tmp_path / event), "--resume_from_checkpoint", "auto")
        stop = StopRequest()
        with pytest.raises(Stopped):
            train_here(tiny_arguments(*flags, *place), stop, AskToStop(stop, event, step))
        again = train_here(tiny_arguments(*flags, *place))
        assert log_of(again) == log_of(whole)
        states = [dict(trainer.model.state_dict()) for trainer in (whole, again)]
        assert same(*states)
        assert again.state.best_global_step == whole.state.best_global_step


def test_each_of_these_fields_has_an_effect(tiny_arguments: Parse, tmp_path: Path) -> None:
    """Otherwise the comparison above would show nothing."""
    flags = ("--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", *DROPOUT)
    found = [
        log_of(train_here(tiny_arguments(*flags, *more, "--output_dir", str(tmp_path / name))))
        for name, more in {"plain": (), **KINDS}.items()
        if name != "the best of all"  # by its learning rate alone
    ]
    assert all(one != other for one, other in itertools.combinations(found, 2))


def test_the_best_model_is_what_the_run_directory_holds(tmp_path: Path) -> None:
    """With a high rate the best step is an early one; its checkpoint outlives the limit."""
    flags = ("--load_best_model_at_end", "--learning_rate", "0.3", "--max_steps", "40",
             "--lr_scheduler_type", "constant", "--eval_steps", "5", "--save_steps", "5",
             "--save_total_limit", "1")  # fmt: skip
    said = train_forked(tmp_path, *flags).stdout
    run = tmp_path / "run"
    results = json.loads((run / "train_results.json").read_text())
    best = results["best_step"]
    assert 5 <= best < 40
    assert f"best        step {best}" in said
    assert {path.name for path in run.glob("checkpoint-*")} == {f"checkpoint-{best}",
                                                                "checkpoint-40"}  # fmt: skip
    assert same(weights(run), weights(run / f"checkpoint-{best}"))
    assert not same(weights(run), weights(run / "checkpoint-40"))
    state = json.loads((run / "checkpoint-40" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == f"run/checkpoint-{best}"
    samples = (run / "samples.md").read_text()
    assert f"## Step {best}, the best\n" in samples
    card = (run / "README.md").read_text()
    assert f"| weights | of step {best}," in card
    assert "after the best step" in card
    assert "load_best_model_at_end | True" in card

    # Killed after its last step, it is finished with the best weights too.
    expected = weights(run)
    (run / "model.safetensors").unlink()
    record = json.loads((run / "run.json").read_text())
    record["sessions"][-1]["status"] = "running"
    (run / "run.json").write_text(json.dumps(record))
    train_forked(tmp_path, *flags, "--resume_from_checkpoint", "auto")
    assert same(weights(run), expected)
    assert json.loads((run / "train_results.json").read_text())["best_step"] == best
    assert (run / "samples.md").read_text() == samples


def test_after_a_move_the_best_checkpoint_is_found(tiny_arguments: Parse, tmp_path: Path) -> None:
    flags = (*BASE, *KINDS["the best of all"])
    whole = train_here(tiny_arguments(*flags, "--output_dir", str(tmp_path / "whole")))
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(tiny_arguments(*flags), stop, AskToStop(stop, "on_step_end", 10))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = ("--output_dir", str(tmp_path / "moved"), "--resume_from_checkpoint", "auto")
    again = train_here(tiny_arguments(*flags, *moved))
    assert again.best_step() == whole.best_step()
    assert same(dict(again.model.state_dict()), dict(whole.model.state_dict()))


def test_gradient_checkpointing_gives_the_same_losses(
    tiny_arguments: Parse, tmp_path: Path
) -> None:
    plain = train_here(tiny_arguments(*DROPOUT, "--output_dir", str(tmp_path / "plain")))
    saving = train_here(tiny_arguments(*DROPOUT, "--gradient_checkpointing"))
    assert saving.model.is_gradient_checkpointing
    losses = [[e["loss"] for e in log_of(t) if "loss" in e] for t in (plain, saving)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_no_checkpoints_and_one_evaluation_are_possible(tmp_path: Path) -> None:
    train_forked(tmp_path, "--save_strategy", "no", "--eval_strategy", "no", "--max_steps", "4")
    run = tmp_path / "run"
    assert not list(run.glob("checkpoint-*"))
    again = ("--save_strategy", "no", "--eval_strategy", "no", "--max_steps", "4")
    said = train_forked(tmp_path, *again, "--resume_from_checkpoint", "auto").stdout
    assert "already finished" in said
    assert (run / "samples.md").read_text().count("## Step") == 1
    record = json.loads((run / "run.json").read_text())
    assert record["configuration"]["training"]["training_arguments"] == {
        "save_strategy": "no",
        "eval_strategy": "no",
    }


def test_once_per_epoch(tmp_path: Path) -> None:
    epoch = ("--save_strategy", "epoch", "--eval_strategy", "epoch", "--logging_strategy", "epoch")
    said = train_forked(tmp_path, *epoch, "--max_steps", "-1", "--num_train_epochs", "2",
                        "--toy_stories", "150", "--save_total_limit", "null").stdout  # fmt: skip
    assert said.count("validation loss") == 2
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "lion_8bit"], "optim: lion_8bit cannot be used: .*bitsandbytes"),
        (["--optim", "sgd", "--optim_args", "speed=3"], "optim_args: sgd does not take speed"),
        (["--lr_scheduler_type", "warmup_stable_decay"], "cannot be used with .*num_decay_steps"),
        (["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"a": 1}'], "keyword.*'a'"),
        (["--load_best_model_at_end", "--save_steps", "7", "--eval_steps", "5"], "multiple of"),
        (["--save_strategy", "best", "--metric_for_best_model", "bleu"], "bleu is not computed"),
        (["--streaming", "--tokenizer", "TOKENIZER", "--eval_strategy", "epoch"], "has no epochs"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run(
    tiny_arguments: Parse, tmp_path: Path, trained_run: Path, flags: list[str], message: str
) -> None:
    from tinystories_hf.training.train import train

    flags = [str(trained_run) if flag == "TOKENIZER" else flag for flag in flags]
    with pytest.raises(UserError, match=message):
        train(tiny_arguments(*flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((), ("--optim", "sgd"), "training_arguments.optim was 'not set', is 'sgd'"),
        (("--optim", "sgd"), (), "training_arguments.optim was 'sgd', is 'not set'"),
        (
            ("--load_best_model_at_end",),
            ("--load_best_model_at_end", "--max_eval_rows", "4"),
            "training_arguments.evaluations.max_eval_rows was 8, is 4",
        ),
    ],
)
def test_a_field_that_determines_the_weights_is_compared_on_resume(
    tiny_arguments: Parse, first: tuple[str, ...], second: tuple[str, ...], message: str
) -> None:
    from tinystories_hf.training.train import train

    train_here(tiny_arguments(*first, "--max_steps", "10"))
    with pytest.raises(UserError, match=message):
        train(tiny_arguments(*second, "--max_steps", "10", "--resume_from_checkpoint", "auto"))


def test_a_field_that_only_watches_or_has_its_default_may_change(tiny_arguments: Parse) -> None:
    from tinystories_hf.training.train import train

    train_here(tiny_arguments("--max_steps", "10"))
    watching = ("--log_level", "error", "--logging_first_step", "--eval_delay", "2")
    resumed = ("--max_steps", "10", "--resume_from_checkpoint", "auto")
    # `train` compares the settings; `train_here` does not.
    results = train(tiny_arguments(*resumed, *watching, "--optim", "adamw_torch_fused"))
    assert results["steps"] == 10


def test_the_host_does_not_wait_for_a_gpu_to_copy_or_for_processes_to_send_masks(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tiny_arguments().training
    for kind in ("cuda", "cpu"):
        monkeypatch.setattr(trainer_arguments, "device_type", lambda kind=kind: kind)
        built = trainer_arguments.build_trainer_arguments(training, plan_batch(training, 1))
        assert built.dataloader_pin_memory is (kind == "cuda")
        assert built.accelerator_config.non_blocking is (kind == "cuda")
        assert built.ddp_broadcast_buffers is False


def test_a_gpu_evaluates_more_rows_at_once(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_arguments().training.per_device_eval_batch_size is None
    for kind, expected in (("cuda", (64, 64, 5)), ("cpu", (8, 16, 5))):
        monkeypatch.setattr(device, "device_type", lambda kind=kind: kind)
        asked = ((None, 8), (None, 16), (5, 8))
        assert tuple(device.evaluation_batch(*each) for each in asked) == expected


def test_deterministic_algorithms_are_a_setting_of_the_run(
    tiny_arguments: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU the results are the same; a run that began without it does not go on with it."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen, step = [], StoryTrainer.training_step

    def training_step(self: StoryTrainer, *args: Any, **how: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(self, *args, **how)

    monkeypatch.setattr(StoryTrainer, "training_step", training_step)
    flags = ("--max_steps", "3", "--save_steps", "2", "--eval_steps", "3")
    folders = [str(tmp_path / name) for name in ("without", "with")]
    for folder, more in zip(folders, ((), ("--deterministic",)), strict=True):
        train(tiny_arguments(*flags, *more, "--output_dir", folder))
    assert seen == [False] * 3 + [True] * 3
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(*(weights(Path(folder)) for folder in folders))
    (tmp_path / "without" / "train_results.json").unlink()
    again = ("--output_dir", folders[0], "--resume_from_checkpoint", "auto", "--deterministic")
    with pytest.raises(UserError, match="deterministic was 'not set', is True"):
        train(tiny_arguments(*flags, *again))


class AGpu:
    """The arguments of the Trainer where the device is a GPU without bf16."""

    mixed_precision = "no"
    device = torch.device("cpu")


def test_what_makes_a_gpu_slow_is_said_with_the_remedy(
    tiny_arguments: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tiny_arguments("--bf16", "auto")
    model = GPTNeoForCausalLM(build_config(arguments.model, 0))
    args: Any = AGpu()
    assert session.device_notes(arguments, model, args, "cpu") == []
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(session, "has_native_bf16", lambda: True)  # fp32 was asked for
    assert not any("bf16" in note for note in session.device_notes(arguments, model, args, "cuda"))
    monkeypatch.setattr(session, "has_native_bf16", lambda: False)
    compiler, precision, attention = session.device_notes(arguments, model, args, "cuda")
    assert compiler.startswith("the blocks are not compiled, which is slower: no C compiler was")
    assert "no bf16" in precision
    assert "accelerate launch --mixed_precision fp16" in precision
    assert "no fused attention" in attention  # as on this device
    monkeypatch.undo()
    chosen = tiny_arguments("--bf16", "false", "--attn_implementation", "eager")
    assert session.device_notes(chosen, model, args, "cuda") == []


def test_a_gpu_without_a_compiler_trains_without_compiled_blocks(
    tiny_arguments: Parse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trained on the CPU, with the decisions of a GPU; asking for compiled blocks is refused."""
    monkeypatch.setattr(kernels, "kernels_available", lambda: False)
    monkeypatch.setattr(sys.modules["tinystories_hf.training.train"], "should_compile",
                        functools.partial(device.should_compile, kind="cuda"))  # fmt: skip
    monkeypatch.setattr(session, "device_notes",
                        functools.partial(session.device_notes, kind="cuda"))  # fmt: skip
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    flags = ("--max_steps", "2", "--output_dir", str(tmp_path / "run"))
    train(tiny_arguments(*flags))
    said = capsys.readouterr().out
    assert said.count("the blocks are not compiled, which is slower: no C compiler was found") == 1
    with pytest.raises(UserError, match=r"^torch_compile: no C compiler was found; install gcc"):
        train(tiny_arguments("--output_dir", str(tmp_path / "other"), "--torch_compile", "true"))
