"""What docs/scaling.md computes is held against real models, tensors and files."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import RandomSampler

from tests.conftest import ROOT
from tests.test_readme import commands
from tinystories_hf import cross_entropy, kernels
from tinystories_hf.arguments import Arguments, ModelArguments, parse_arguments
from tinystories_hf.batch import plan_batch
from tinystories_hf.benchmark import counting, scaling, scaling_tables
from tinystories_hf.benchmark.scaling import H100, Case, cases
from tinystories_hf.cleaning import story_digest
from tinystories_hf.errors import UserError
from tinystories_hf.evaluation.paper import TRAINING_TOKENS
from tinystories_hf.modeling import GPTNeoForCausalLM, build_config, count_parameters

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
CASES = {case.name: case for case in cases()}
# The parameters of the released files, which claim 2,048 positions.
STORED = {
    "XS": 3_647_680,
    "TinyStories-1M": 3_745_984,
    "TinyStories-3M": 8_278_400,
    "TinyStories-8M": 19_702_528,
    "TinyStories-28M": 51_987_968,
    "TinyStories-33M": 68_514_048,
    "TinyStories-1Layer-21M": 66_155_520,
    "TinyStories-2Layers-33M": 78_748_672,
}


@pytest.mark.parametrize("name", STORED)
def test_parameters_are_those_of_a_real_model(name: str) -> None:
    shape = CASES[name].shape
    with torch.device("meta"):
        report = count_parameters(GPTNeoForCausalLM(build_config(shape, 50_256)))
    assert counting.parameters(shape) == report.total == STORED[name]
    assert counting.block_parameters(shape) == report.blocks


def test_all_released_shapes_are_there() -> None:
    assert CASES.keys() == STORED.keys()
    assert [CASES[name].global_batch_size for name in ("XS", "TinyStories-33M")] == [80, 1280]


def test_operations_are_those_of_the_recorded_roofline() -> None:
    for row in scaling.recorded("benchmark-cpu", "roofline"):
        assert CASES["XS"].operations == row["operations_per_token"]
        assert counting.moved_bytes(CASES["XS"].shape, 0) == row["bytes_per_step"]
    # One global layer of 1024: 12 x 1024^2 weights, a head of 50,257, and half of 512 keys.
    by_hand = 6 * (12 * 1024**2 + 1024 * 50_257) + 12 * 1024 * 256.5
    assert CASES["TinyStories-1Layer-21M"].operations == by_hand == 387_428_352
    assert (
        counting.keys_seen(CASES["XS"].shape, "local", 512)
        == sum(min(position, 256) for position in range(1, 513)) / 512
    )


def kept_for_backward(model: torch.nn.Module, rows: int, context: int) -> int:
    """Return the bytes that a forward pass in bf16 keeps, weights and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(1000, (rows, context))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        alone = {"skip_logits": True} if isinstance(model, GPTNeoForCausalLM) else {}
        model(input_ids=ids, labels=ids, use_cache=False, **alone)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (GPTNeoForCausalLM, counting.activation_bytes),
        (transformers.GPTNeoForCausalLM, partial(counting.stock_activation_bytes, context=64)),
    ],
    ids=["ours", "stock"],
)
def test_activations_are_what_autograd_keeps(
    model: Any, count: Callable[[ModelArguments], int]
) -> None:
    # Heads of 64 without attention dropout go through PyTorch's attention, here as on a GPU.
    shape = replace(
        CASES["XS"].shape, hidden_size=256, num_layers=2, num_heads=4, vocab_size=1000,
        max_position_embeddings=64, window_size=32, attention_dropout=0.0, resid_dropout=0.0,
        embed_dropout=0.0,
    )  # fmt: skip
    built = model(build_config(shape, 999)).train()
    found = (kept_for_backward(built, 5, 64) - kept_for_backward(built, 1, 64)) / (4 * 64)
    assert found == pytest.approx(count(shape), rel=0.005)


class Traffic(TorchDispatchMode):
    """Counts the bytes of logits, or what is as large, that operations read and write."""

    PASSING = ("t", "nll_loss", "index", "detach", "slice", "view", "empty", "zeros")

    def __init__(self, logits: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logits = logits
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if name != "t" and not name.startswith(self.PASSING[1:]):
            self.bytes += sum(
                value.nbytes
                for value in (*args, result)
                if isinstance(value, torch.Tensor) and value.numel() == self.logits
            )
        return result


def test_the_traffic_of_a_logit_is_what_its_operations_read_and_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "can_read", lambda _: False)  # as on a GPU
    tokens, vocabulary = 32, 1009
    states, weight = torch.randn(tokens, 16).bfloat16(), torch.randn(vocabulary, 16).bfloat16()
    labels = torch.randint(vocabulary, (tokens,))
    with Traffic(tokens * vocabulary) as traffic:
        cross_entropy._by_chunks(states, weight, labels, with_gradient=True)
    assert traffic.bytes == counting.LOGIT_BYTES * tokens * vocabulary == 42 * tokens * vocabulary


def test_a_ring_sends_what_it_does_by_hand() -> None:
    xs = CASES["XS"].shape
    assert counting.sent_bytes(xs, 1) == counting.sharded_sent_bytes(xs, 1) == 0
    assert counting.sent_bytes(xs, 8) == 2 * 7 * 4 * 3_647_680 // 8
    blocks, rest = 398_464 - 2 * 64, 3_647_680 - 398_464 + 2 * 64
    gathered, added_up = 2 * (2 * blocks + rest), 4 * 3_647_680
    assert counting.sharded_sent_bytes(xs, 8) == 7 * (gathered + added_up) // 8


def test_a_step_of_xs_by_hand() -> None:
    found = scaling.epoch(CASES["XS"], H100, 8)
    assert (found.batch, found.rows, found.steps) == (80, 10, 11_572)
    tokens = 10 * 512
    products = tokens * 23_036_544 / (0.25 * 989.5e12)
    moved = 3_647_680 * 40 + tokens * (42 * 50_257 + 2 * 22_600)
    assert found.work == pytest.approx(products + moved / 3.35e12)
    assert found.sending == pytest.approx(25_533_760 / 450e9)
    assert found.seconds == pytest.approx(11_572 * (found.work + found.sending))


@pytest.mark.parametrize("gpus", [8, 64])
@pytest.mark.parametrize("case", [*CASES.values(), scaling.largest()], ids=lambda c: c.name)
def test_the_fewest_rows_are_just_enough(case: Case, gpus: int) -> None:
    rows = scaling.fewest_rows(case, H100, gpus)
    sending = scaling.epoch(case, H100, gpus).sending
    assert sending <= scaling.FEW * scaling.work_seconds(case, H100, rows)
    assert rows == 1 or sending > scaling.FEW * scaling.work_seconds(case, H100, rows - 1)


def test_a_batch_is_shared_as_the_run_would_refuse_or_take_it() -> None:
    training = parse_arguments([]).training
    for gpus in range(1, 81):
        if gpus in scaling.sharing(CASES["XS"]):
            plan_batch(training, gpus)
        else:
            with pytest.raises(UserError, match=f" {CASES['XS'].batch_on(gpus)},"):
                plan_batch(training, gpus)


def test_the_order_of_an_epoch_takes_what_is_counted() -> None:
    rows = 100_000
    tracemalloc.start()
    next(iter(RandomSampler(range(rows), num_samples=rows - 8)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tensor = 8  # not Python's memory
    assert peak / rows + tensor == pytest.approx(scaling_tables.ORDER_BYTES, rel=0.02)


def test_digests_take_what_is_counted() -> None:
    stories = 150_000
    tracemalloc.start()
    digests = {story_digest(str(story)) for story in range(stories)}
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held == pytest.approx(scaling_tables.set_bytes(len(digests)), rel=0.02)


def test_a_checkpoint_is_as_large_as_counted(
    trained_run: Path, tiny_arguments: Callable[..., Arguments]
) -> None:
    checkpoint = trained_run / "checkpoint-20"
    found = sum(
        (checkpoint / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")
    )
    counted = counting.checkpoint_bytes(tiny_arguments().model)
    # The rest are names and shapes, which do not grow with the model.
    assert counted < found < counted + 30_000


def test_the_page_shows_the_tables_that_the_module_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinystories_hf.benchmark.scaling"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    printed = done.stdout.strip().split("\n\n**")
    assert len(printed) == 9
    for table in printed:
        assert table.removeprefix("**") in PAGE
    assert "No GPU" in "".join(PAGE.splitlines()[2:5])


def test_the_text_of_the_page_says_what_was_measured_or_is_computed() -> None:
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = scaling_tables.GIGABYTE
    for said in (
        f"{found.preparation_rate:,} tokens/s",
        f"{found.indexed_words:,} words indexed | {found.seconds_to_index} s",
        f"looked up in all of it | {found.seconds_to_ask} s",
    ):
        assert said in results
    assert f"{1e3 * scaling.trainer_seconds():.1f} ms" in PAGE
    xs, machine = CASES["XS"], scaling.epoch(CASES["XS"], H100, 8)
    rows, order = 1000 * TRAINING_TOKENS // 512, scaling_tables.ORDER_BYTES
    for said in (
        f"{counting.keys_seen(xs.shape, 'global', 512)} keys on average",
        f"{TRAINING_TOKENS:,} tokens",
        f"{machine.batch / (machine.work + machine.sending):,.0f} rows a second for eight GPUs",
        f"XS needs {scaling.fewest_rows(xs, H100, 64)} rows each",
        f"{order} bytes for each row at its peak",
        f"with eight GPUs {8 * order * rows / 1e9:,.0f} GB",
        f"of {scaling.largest_model(H100) / 1e9:.0f} billion parameters",
    ):
        assert said in " ".join(PAGE.split())
    shares = [row["share"] for row in scaling.recorded("benchmark-cpu", "roofline")]
    assert " and ".join(f"{share:.0%}" for share in shares) in PAGE


def launches() -> list[list[str]]:
    """Return what each command of the page gives to `accelerate launch`; Slurm's is one of them."""
    page = re.sub(r"srun bash -c \"(.*?)\"", r"\1", PAGE)
    page = page.replace("\\$SLURM_NODEID", "1").replace("$head", "10.0.0.1")
    return [words[2:] for words in commands(page) if words[:2] == ["accelerate", "launch"]]


def test_accelerate_takes_the_commands_of_the_page() -> None:
    found = []
    for words in launches():
        asked, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert (ROOT / asked.training_script).exists()
        files = [str(ROOT / word) if "/" in word else word for word in asked.training_script_args]
        training = parse_arguments(files).training
        plan_batch(training, asked.num_processes)
        found.append((asked.num_processes, asked.num_machines, asked.use_fsdp))
        if asked.num_machines > 1:
            assert (asked.main_process_ip, int(asked.main_process_port)) == ("10.0.0.1", 29_500)
    one, eight, two, shares = (1, 1, False), (8, 1, False), (16, 2, False), (8, 1, True)
    assert found == [one, one, eight, two, two, two, shares, (16, 2, True)]
