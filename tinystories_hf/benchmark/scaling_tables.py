"""The tables of docs/scaling.md, made from `scaling.py` and `counting.py`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from tinystories_hf.benchmark import counting, scaling
from tinystories_hf.benchmark.report import table
from tinystories_hf.benchmark.scaling import CONTEXT, GPU_COUNTS, GPUS, H100, Case, cases
from tinystories_hf.evaluation.paper import (
    TRAINING_FILE_BYTES,
    TRAINING_STORIES,
    TRAINING_TOKENS,
    VALIDATION_STORIES,
)

GB = 1e9


@dataclass(frozen=True)
class Gigabyte:
    """What a gigabyte of text took on two cores: docs/results.md, "a gigabyte, prepared"."""

    preparation_rate: int = 2_835_440
    indexed_words: int = 189_260_460
    seconds_to_index: int = 68
    seconds_to_ask: int = 63


GIGABYTE = Gigabyte()
# Python's peak for each row of an epoch's order: a number of 32 bytes, its place in two lists while
# the second is cut from the first, and in the tensor before; tests/test_scaling.py measures it.
ORDER_BYTES = 32 + 2 * 8 + 8
ROW_BYTES = 2 * CONTEXT
WORD_BYTES = 4
START_BYTES = 8


def tables() -> str:
    """Return all tables in Markdown, in the order of the page."""
    makers = (hardware, shapes, step, epochs, shares, sending, sharing, memory, corpora)
    return "\n\n".join(make() for make in makers)


def hardware() -> str:
    """Return what the data sheets say."""
    return table(
        "Data sheet: GPUs, and what connects them",
        "GPU | bf16 peak, dense, TFLOP/s | memory, GB | its bandwidth, TB/s"
        " | to a GPU of the same machine, GB/s | of another, GB/s | source",
        [
            [
                gpu.name,
                f"{gpu.operations / 1e12:,.1f}",
                f"{gpu.memory / GB:,.0f}",
                f"{gpu.bandwidth / 1e12:.2f}",
                f"{gpu.inside / GB:,.0f}",
                f"{gpu.between / GB:,.0f}",
                gpu.source,
            ]
            for gpu in GPUS
        ],
    )


def shapes() -> str:
    """Return parameters and operations of each shape."""
    rows = []
    for case in [*cases(), scaling.largest()]:
        shape, each = case.shape, case.operations
        kinds = [counting.attention_operations(shape, k, CONTEXT) for k in ("global", "local")]
        head = 6 * shape.hidden_size * shape.vocab_size
        rows.append(
            [
                case.name,
                f"{shape.num_layers} x {shape.hidden_size}",
                f"{counting.parameters(shape):,}",
                f"{counting.block_parameters(shape):,}",
                f"{each / 1e6:,.2f}",
                f"{head / each:.0%}",
                *(f"{kind / 1e6:,.2f}" for kind in kinds),
                f"{each * TRAINING_TOKENS / 1e15:,.1f}",
            ]
        )
    return table(
        "Computed: parameters, and operations forward and backward",
        "model | layers x width | parameters | of them blocks | MFLOP per token | of them the head"
        " | global attention | local attention | PFLOP per epoch",
        rows,
    )


def step() -> str:
    """Return what a token and a step move through the memory of a GPU."""
    rows = []
    for case in cases():
        shape, rows_each = case.shape, case.global_batch_size
        fixed = counting.moved_bytes(shape, 0)
        token = counting.moved_bytes(shape, 1) - fixed
        products = case.operations / (scaling.SHARE_OF_PEAK * H100.operations)
        rows.append(
            [
                case.name,
                f"{counting.LOGIT_BYTES * shape.vocab_size / 1e6:.2f}",
                f"{2 * counting.activation_bytes(shape) / 1e6:.2f}",
                f"{fixed / 1e6:,.0f}",
                f"{1e6 * products:.3f}",
                f"{1e6 * token / H100.bandwidth:.3f}",
                f"{1e3 * scaling.work_seconds(case, H100, rows_each):,.1f}",
                f"{rows_each:,}",
            ]
        )
    return table(
        "Computed: what goes through the memory of one H100, and the least time",
        "model | logits, MB per token | activations, MB per token | weights and optimizer, MB per"
        " step | products, µs per token | memory, µs per token | step, ms | of sequences",
        rows,
    )


def epochs() -> str:
    """Return an epoch of each shape on 1, 8 and 64 GPUs."""
    rows = []
    for case in cases():
        for gpus in GPU_COUNTS:
            found = scaling.epoch(case, H100, gpus)
            machines = math.ceil(gpus / scaling.PER_MACHINE)
            read = found.batch / (found.work + found.sending) / machines
            rows.append(
                [
                    case.name,
                    str(gpus),
                    f"{found.batch:,} = {gpus} x {found.rows:,}",
                    f"{found.steps:,}",
                    f"{1e3 * found.work:,.2f}",
                    f"{1e3 * found.sending:,.2f}",
                    f"{found.share_of_sending:.0%}",
                    f"{found.seconds / 60:,.1f}",
                    f"{found.seconds * gpus / 3600:,.2f}",
                    f"{found.steps * scaling.trainer_seconds() / 60:,.1f}",
                    f"{read:,.0f} = {read * ROW_BYTES / 1e6:,.0f} MB",
                ]
            )
    return table(
        f"Computed: one epoch on H100s, products at {scaling.SHARE_OF_PEAK:.0%} of the peak"
        " (ASSUMPTION)",
        "model | GPUs | sequences of a step | steps | work, ms | sending, ms | share of sending"
        " | epoch, min | GPU hours | the Trainer's own, min | rows a second for each machine",
        rows,
    )


def shares() -> str:
    """Return how an epoch on one GPU follows the assumed share of the peak."""
    rows = [
        [
            case.name,
            *(
                f"{scaling.epoch(case, gpu, 1, share=share).seconds / 60:,.1f}"
                for gpu in GPUS
                for share in scaling.OTHER_SHARES
            ),
        ]
        for case in cases()
    ]
    columns = [f"{gpu.name}, {share:.0%}" for gpu in GPUS for share in scaling.OTHER_SHARES]
    return table(
        "Computed: one epoch on one GPU, minutes, by the assumed share of its peak",
        " | ".join(["model", *columns]),
        rows,
    )


def sending() -> str:
    """Return what is sent in a step, and how many rows hide it."""
    rows = []
    for case in [*cases(), scaling.largest()]:
        sent = [counting.sent_bytes(case.shape, gpus) for gpus in GPU_COUNTS[1:]]
        shared = [counting.sharded_sent_bytes(case.shape, gpus) for gpus in GPU_COUNTS[1:]]
        rows.append(
            [
                case.name,
                *(f"{size / 1e6:,.0f}" for size in (*sent, *shared)),
                *(
                    f"{1e3 * size / H100.link(gpus):.2f}"
                    for size, gpus in zip(sent, GPU_COUNTS[1:], strict=True)
                ),
                *(f"{scaling.fewest_rows(case, H100, gpus):,}" for gpus in GPU_COUNTS[1:]),
                *(
                    f"{size(case.shape) / 1e6:,.0f}"
                    for size in (counting.checkpoint_bytes, counting.sharded_checkpoint_bytes)
                ),
            ]
        )
    return table(
        "Computed: what each GPU sends in a step, and a checkpoint",
        "model | DDP, 8 GPUs, MB | 64 | FSDP, 8 GPUs, MB | 64 | DDP, 8 GPUs, ms | 64"
        f" | rows per GPU for {scaling.FEW:.0%}, 8 GPUs | 64 | checkpoint, MB | under FSDP",
        rows,
    )


def sharing() -> str:
    """Return how the batch of XS is shared out."""
    xs = cases()[0]
    counts = [*scaling.sharing(xs), GPU_COUNTS[-1]]
    return table(
        f"Computed: the {xs.global_batch_size} sequences of a step of XS, shared out",
        "GPUs | sequences of each",
        [
            [str(n), f"{xs.global_batch_size // n}" if n in scaling.sharing(xs)
             else f"refused; {xs.batch_on(n)} make {xs.batch_on(n) // n} each"]
            for n in sorted(counts)
        ],
    )  # fmt: skip


def memory() -> str:
    """Return what a GPU holds, and how many rows fit."""
    rows = []
    for case in [*cases(), scaling.largest()]:
        ours = counting.activation_bytes(case.shape)
        stock = counting.stock_activation_bytes(case.shape, CONTEXT)
        rows.append(
            [
                case.name,
                f"{counting.STATE_BYTES * counting.parameters(case.shape) / 1e6:,.0f}",
                f"{counting.held_bytes(case.shape) / 1e6:,.0f}",
                *(f"{size * CONTEXT / 1e6:,.1f}" for size in (ours, stock)),
                *(f"{scaling.most_rows(case, H100, size):,}" for size in (ours, stock)),
            ]
        )
    return table(
        "Computed: memory of one GPU",
        "model | weights, gradients, AdamW, MB | with bf16 weights and the head's gradient, MB"
        " | activations of a row, MB | the same in stock, MB | rows in 80 GB at most | in stock",
        rows,
    )


def set_bytes(entries: int) -> int:
    """Return what a set of 16-byte digests takes in Python: the digests, and its table."""
    slots = 1 << math.ceil(math.log2(entries / 0.6))
    return entries * sys.getsizeof(bytes(16)) + 16 * slots


def corpora() -> str:
    """Return what grows with the corpus, for TinyStories and for a thousand times as much."""
    columns = [_corpus(times) for times in (1, 1000)]
    return table(
        "What grows with the corpus",
        "what | how it is known | TinyStories | a thousand times",
        [[name, how, *(column[name][1] for column in columns)]
         for name, (how, _) in columns[0].items()],
    )  # fmt: skip


def _corpus(times: int) -> dict[str, tuple[str, str]]:
    tokens, stories = TRAINING_TOKENS * times, TRAINING_STORIES * times
    text, rows = TRAINING_FILE_BYTES * times, TRAINING_TOKENS * times // CONTEXT

    def size(count: float) -> str:
        return f"{count / GB:,.3f} GB" if count < GB else f"{count / GB:,.1f} GB"

    def hours(seconds: float) -> str:
        return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"

    def pass_of(case: Case, gpus: int) -> str:
        return hours(scaling.epoch(case, H100, gpus, tokens=tokens).seconds)

    known = "counted by third parties"
    rate, gigabytes = scaling.preparation_rate(), text / GB
    xs, widest = cases()[0], scaling.largest()
    return {
        "tokens": (known, f"{tokens:,}"),
        "stories": (known, f"{stories:,}"),
        "text": (known, size(text)),
        "rows on disk, two bytes a token": ("computed", size(2 * tokens)),
        "blocks of rows in the file": ("computed", f"{math.ceil(tokens / 2**20):,}"),
        f"preparation, two cores, {rate:,.0f} tokens/s": ("computed from a measured rate",
                                                          hours(tokens / rate)),
        f"the same, {GIGABYTE.preparation_rate:,} tokens/s": (
            "computed from a measured rate", hours(tokens / GIGABYTE.preparation_rate)),
        "digests of validation stories, in memory, at least": ("computed",
                                                     size(set_bytes(VALIDATION_STORIES * times))),
        "digests of training stories, to drop duplicates": ("computed", size(set_bytes(stories))),
        "order of an epoch, each process": ("computed", size(ORDER_BYTES * rows)),
        "index for memorisation, on disk": (
            "computed from a measured size",
            size(WORD_BYTES * GIGABYTE.indexed_words * gigabytes)),
        "where its stories start, in memory": ("computed", size(START_BYTES * stories)),
        "making the index, two cores": ("computed from a measured rate",
                                        hours(GIGABYTE.seconds_to_index * gigabytes)),
        "asking it about 440 generations, two cores": (
            "computed from a measured rate", hours(GIGABYTE.seconds_to_ask * gigabytes)),
        "tokens for each parameter of XS": ("computed",
                                            f"{tokens / counting.parameters(xs.shape):,.0f}"),
        "epoch of XS on 8 H100": ("computed, ASSUMPTION", pass_of(xs, 8)),
        f"epoch of {widest.name} on 64 H100": ("computed, ASSUMPTION", pass_of(widest, 64)),
    }  # fmt: skip
