"""What one epoch costs on 1, 8 and 64 GPUs, and a corpus a thousand times larger: computed.

    python -m tinystories_hf.benchmark.scaling

prints the tables of docs/scaling.md. No GPU was at hand: what stands here about them is counted
(`counting.py`), taken from data sheets (`GPUS`) or assumed (`SHARE_OF_PEAK`). What was measured, on
the CPU, is read from docs/results.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinystories_hf.arguments import CONFIGS, ModelArguments, parse_arguments
from tinystories_hf.benchmark import counting
from tinystories_hf.evaluation.paper import FIGURE_4, TRAINING_TOKENS

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
XS = "XS"
CONTEXT = 512  # what all of them were trained on
GPU_COUNTS = (1, 8, 64)
# ASSUMPTION. The share of a GPU's peak that matrix products reach, and what else it might be.
SHARE_OF_PEAK = 0.25
OTHER_SHARES = (0.10, 0.25, 0.40)
# What communication may cost beside the work of a step before more GPUs stop paying.
FEW = 0.10


@dataclass(frozen=True)
class Gpu:
    """A GPU as its vendor's data sheet has it; in eights in a machine.

    `operations` is the peak in bf16 without sparsity, per second, `bandwidth` that of its memory;
    `inside` and `between` are what it sends per second, in one direction, to the others of its
    machine (half of NVLink's figure, which counts both) and to those of another.
    """

    name: str
    operations: float
    memory: float
    bandwidth: float
    inside: float
    between: float
    source: str

    def link(self, gpus: int) -> float:
        """Return the slowest link of a ring of so many."""
        return self.inside if gpus <= PER_MACHINE else self.between


PER_MACHINE = 8
# 1,979 TFLOP/s in the data sheets are with sparsity, twice the dense rate; 900 GB/s of NVLink are
# both directions; between machines one port of 400 Gbit/s for each GPU (eight in a DGX).
_NIC = 400e9 / 8
_SHEETS = "data sheets of NVIDIA's {} and DGX H100/H200"
H100 = Gpu("H100 SXM", 1979e12 / 2, 80e9, 3.35e12, 450e9, _NIC, _SHEETS.format("H100"))
H200 = Gpu("H200 SXM", 1979e12 / 2, 141e9, 4.8e12, 450e9, _NIC, _SHEETS.format("H200"))
GPUS = (H100, H200)


@dataclass(frozen=True)
class Case:
    """A shape and the sequences of an optimizer step."""

    name: str
    shape: ModelArguments
    global_batch_size: int

    @property
    def operations(self) -> int:
        """Operations of a token."""
        return counting.operations_per_token(self.shape, CONTEXT)

    def batch_on(self, gpus: int) -> int:
        """Return the sequences of a step that so many GPUs can share: no fewer than asked for."""
        return math.ceil(self.global_batch_size / gpus) * gpus


def cases() -> list[Case]:
    """Return XS as configs/xs.yaml has it, and the published models.

    Their widths and layers are those of `evaluation.paper`. Of the rest, released configurations of
    TinyStories-1M, 8M, 33M and 2Layers-33M say: 16 heads, all 50,257 tokens, 2,048 positions, no
    dropout, global and local layers in turn. That a single layer is a global one follows from that.
    Their batch is the one known of the 33M (configs/xs-paper.yaml).
    """
    xs = parse_arguments([])
    paper = parse_arguments(["--config", str(CONFIGS / "xs-paper.yaml")])
    published = [
        Case(
            row.published,
            replace(
                paper.model,
                hidden_size=row.hidden_size,
                num_layers=row.num_layers,
                attention_types=paper.model.attention_types[: row.num_layers],
            ),
            paper.training.global_batch_size,
        )
        for row in FIGURE_4
        if row.published
    ]
    ours = Case(XS, xs.model, xs.training.global_batch_size)
    return [ours, *sorted(published, key=lambda case: case.operations)]


def largest() -> Case:
    """Return the largest shape of the paper's Figure 4, which was not published."""
    row = max(FIGURE_4, key=lambda row: row.num_layers * row.hidden_size**2)
    like = cases()[-1]
    wide = replace(
        like.shape,
        hidden_size=row.hidden_size,
        num_layers=row.num_layers,
        attention_types=["global", "local"],
    )
    return Case(f"{row.num_layers} x {row.hidden_size}", wide, like.global_batch_size)


@dataclass(frozen=True)
class Epoch:
    """One pass over the tokens of a split on some GPUs; seconds are the least that is counted."""

    gpus: int
    batch: int
    steps: int
    work: float
    sending: float

    @property
    def rows(self) -> int:
        """Sequences of each GPU in a step."""
        return self.batch // self.gpus

    @property
    def seconds(self) -> float:
        """Of the epoch, were nothing sent while other things are done."""
        return self.steps * (self.work + self.sending)

    @property
    def share_of_sending(self) -> float:
        """Share of a step that is communication."""
        return self.sending / (self.work + self.sending)


def work_seconds(case: Case, gpu: Gpu, rows: float, share: float = SHARE_OF_PEAK) -> float:
    """Return the least seconds of a step of so many rows on one GPU.

    Products at a share of the peak, and then everything that goes through memory at its full
    bandwidth: they are kernels one after the other.
    """
    tokens = rows * CONTEXT
    moved = counting.moved_bytes(case.shape, 1) - counting.moved_bytes(case.shape, 0)
    fixed = counting.moved_bytes(case.shape, 0)
    products = tokens * case.operations / (share * gpu.operations)
    return products + (fixed + tokens * moved) / gpu.bandwidth


def epoch(
    case: Case,
    gpu: Gpu,
    gpus: int,
    *,
    share: float = SHARE_OF_PEAK,
    tokens: int = TRAINING_TOKENS,
) -> Epoch:
    """Return an epoch of data parallelism."""
    batch = case.batch_on(gpus)
    steps = tokens // CONTEXT // batch
    work = work_seconds(case, gpu, batch // gpus, share)
    sending = counting.sent_bytes(case.shape, gpus) / gpu.link(gpus)
    return Epoch(gpus, batch, steps, work, sending)


def fewest_rows(case: Case, gpu: Gpu, gpus: int) -> int:
    """Return the rows that each GPU needs for communication to stay under a tenth of its work."""
    sending = counting.sent_bytes(case.shape, gpus) / gpu.link(gpus)
    fixed, row = work_seconds(case, gpu, 0), work_seconds(case, gpu, 1) - work_seconds(case, gpu, 0)
    return max(1, math.ceil((sending / FEW - fixed) / row))


def most_rows(case: Case, gpu: Gpu, per_token: int) -> int:
    """Return the rows that fit into a GPU at so many bytes of activations a token.

    An upper bound: what its libraries and the chunk of logits take is not counted.
    """
    return int((gpu.memory - counting.held_bytes(case.shape)) / (per_token * CONTEXT))


def largest_model(gpu: Gpu) -> float:
    """Return the parameters of which a GPU can hold weights, gradients and states, and no more."""
    return gpu.memory / counting.STATE_BYTES


def sharing(case: Case) -> list[int]:
    """Return the numbers of GPUs that can share a step."""
    size = case.global_batch_size
    return [gpus for gpus in range(1, size + 1) if size % gpus == 0]


def recorded(name: str, part: str) -> Any:
    """Return a part of a benchmark that was measured and recorded under docs/results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["parts"][part]


def trainer_seconds() -> float:
    """Return what our Trainer adds to a step, measured on the CPU (docs/benchmarks.md)."""
    rates = recorded("benchmark-trainer-small-cpu", "trainer")
    quickstart = parse_arguments(["--config", str(CONFIGS / "quickstart.yaml")])
    tokens = rates["rows"] * quickstart.data.context_length
    seconds: float = tokens / rates["ours"]["median"] - tokens / rates["bare loop"]["median"]
    return seconds


def preparation_rate() -> float:
    """Return the tokens per second of preparation, measured on two cores."""
    rate: float = recorded("benchmark-preparation-cpu", "preparation")["ours"]["median"]
    return rate


if __name__ == "__main__":
    from tinystories_hf.benchmark.scaling_tables import tables
    from tinystories_hf.errors import report_user_errors

    with report_user_errors():
        print(tables())
