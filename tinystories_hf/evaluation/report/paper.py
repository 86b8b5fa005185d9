"""Results of the TinyStories paper (arXiv 2305.07759 v2), for comparison.

Figures 4 and 24 are images: their losses were read off by eye, with an error of about 0.02 nats.
The paper kept the 10,000 most common tokens. It does not state how the other tokens were handled or
how long the models were trained, so its losses are not directly comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The vocabulary size of the published models. Losses per token of another tokenizer are not
# comparable.
GPT_NEO_VOCABULARY = 50_257
SOURCE = "arXiv 2305.07759 v2, Figure 4"
# The paper's validation split, TinyStories-valid.txt of the first version: tokens of the GPT-Neo
# tokenizer including end-of-text tokens, and bytes of text (counted by third parties). They convert
# a loss per token to bits per byte.
VALIDATION_TOKENS = 4_765_918
VALIDATION_BYTES = 19_190_318
VALIDATION_STORIES = 21_990
BITS_PER_NAT = VALIDATION_TOKENS / VALIDATION_BYTES / math.log(2)
# The paper's training split, TinyStories-train.txt of the first version: tokens as above, and
# bytes of the file (counted by third parties).
TRAINING_STORIES = 2_119_719
TRAINING_TOKENS = 473_992_236
TRAINING_FILE_BYTES = 1_924_281_556


@dataclass(frozen=True)
class PaperRow:
    """One row of Figure 4: a model shape, its loss in nats per token, and GPT-4's grades out of 10.

    `published` is the name of the model on the Hub, under roneneldan.
    """

    hidden_size: int
    num_layers: int
    loss: float
    creativity: float
    grammar: float
    consistency: float
    instruct: float
    plot: float
    published: str | None = None


FIGURE_4 = (
    PaperRow(64, 12, 2.02, 4.84, 6.19, 4.75, 4.34, 4.39),
    PaperRow(64, 8, 2.08, 4.68, 6.14, 4.45, 4.34, 4.40, "TinyStories-1M"),
    PaperRow(64, 4, 2.26, 3.97, 5.31, 3.77, 3.79, 3.71),
    PaperRow(64, 2, 2.38, 2.94, 4.33, 2.41, 2.86, 3.40),
    PaperRow(128, 12, 1.62, 6.02, 7.25, 7.20, 6.94, 6.58),
    PaperRow(128, 8, 1.65, 5.97, 7.23, 7.10, 6.87, 6.16, "TinyStories-3M"),
    PaperRow(128, 4, 1.78, 5.70, 6.91, 6.60, 6.00, 5.53),
    PaperRow(128, 2, 1.92, 4.90, 6.43, 4.75, 5.23, 4.89),
    PaperRow(256, 12, 1.34, 6.66, 7.80, 8.38, 7.68, 7.18),
    PaperRow(256, 8, 1.38, 6.54, 7.72, 8.02, 7.92, 7.23, "TinyStories-8M"),
    PaperRow(256, 4, 1.47, 6.32, 7.64, 7.76, 8.07, 7.18),
    PaperRow(256, 2, 1.60, 6.23, 7.50, 7.20, 7.23, 6.50),
    PaperRow(512, 12, 1.19, 6.90, 8.46, 9.11, 8.21, 7.37),
    PaperRow(512, 8, 1.20, 6.85, 8.34, 8.95, 8.05, 7.26, "TinyStories-28M"),
    PaperRow(512, 4, 1.27, 6.75, 8.35, 8.50, 8.34, 7.36),
    PaperRow(512, 2, 1.39, 6.40, 7.72, 7.90, 7.76, 7.13),
    PaperRow(768, 12, 1.18, 7.00, 8.30, 9.20, 8.23, 7.47),
    PaperRow(768, 8, 1.18, 7.02, 8.62, 9.34, 8.36, 7.34),
    PaperRow(768, 4, 1.20, 6.89, 8.43, 9.01, 8.44, 7.52, "TinyStories-33M"),
    PaperRow(768, 2, 1.31, 6.68, 8.01, 8.42, 7.97, 7.34),
    PaperRow(768, 1, 1.54, 6.00, 7.35, 7.25, 5.81, 6.44),
    PaperRow(1024, 12, 1.22, 7.05, 8.43, 8.98, 8.18, 7.29),
    PaperRow(1024, 8, 1.20, 7.13, 8.25, 8.92, 8.47, 7.47),
    PaperRow(1024, 4, 1.21, 7.04, 8.32, 8.93, 8.34, 7.47),
    PaperRow(1024, 2, 1.27, 6.68, 8.22, 8.52, 8.04, 7.24, "TinyStories-2Layers-33M"),
    PaperRow(1024, 1, 1.49, 6.36, 7.77, 7.47, 6.09, 6.42, "TinyStories-1Layer-21M"),
)

# Figure 4, models trained on other data: creativity, grammar, consistency. Completions of GPT-Neo
# and GPT-2 were cut at the first repeated 4-gram.
OTHER_MODELS = {
    "GPT-Neo (125M)": (3.34, 5.27, 4.22),
    "GPT-2-small (125M)": (3.70, 5.40, 4.32),
    "GPT-2-med (355M)": (4.22, 6.27, 5.34),
    "GPT-2-large (774M)": (4.30, 6.43, 6.04),
    "GPT-4": (8.21, 8.75, 9.93),
}

# Figure 24, models of hidden size 768: (layers, heads) -> loss, grammar, creativity, consistency.
FIGURE_24 = {
    (2, 2): (1.38, 7.77, 6.50, 7.78),
    (2, 4): (1.34, 8.05, 6.57, 8.16),
    (2, 8): (1.33, 8.25, 6.53, 8.16),
    (1, 2): (1.58, 7.13, 5.83, 6.38),
    (1, 4): (1.56, 7.43, 5.90, 6.75),
    (1, 8): (1.54, 7.45, 6.28, 7.02),
}

# Figures 9 to 11, counted from their colours: (hidden size, layers) -> (right, half right, wrong)
# completions of 9 prompts for facts, 9 for reasoning and 6 for context, as judged by the authors.
FIGURES_9_TO_11 = {
    (64, 8): ((0, 1, 8), (0, 0, 9), (1, 1, 4)),
    (128, 8): ((0, 4, 5), (2, 0, 7), (1, 0, 5)),
    (256, 8): ((1, 7, 1), (5, 2, 2), (3, 2, 1)),
    (512, 8): ((5, 1, 3), (6, 1, 2), (5, 1, 0)),
    (768, 4): ((9, 0, 0), (9, 0, 0), (6, 0, 0)),
    (1024, 1): ((1, 4, 4), (1, 3, 5), (0, 0, 6)),
    (1024, 2): ((5, 4, 0), (3, 2, 4), (2, 3, 1)),
}

# Figures 14 to 17, read off the histograms; the paper gives no means.
MEMORIZATION = {
    "true_ending_rouge_2": "mostly 0.03 to 0.15 for every model, highest 0.20 to 0.30",
    "between_rouge_2": "peak 0.06 to 0.11, highest about 0.20; between true endings 0.08 and 0.17",
    "in_training": "most 4-grams and 5-grams never occur in training",
    "nearest": "Rouge-2 peak at 0.25 to 0.4, Rouge-3 peak at 0.1 to 0.2",
}


def paper_row(hidden_size: int, num_layers: int) -> PaperRow | None:
    """Return the row of Figure 4 for a model shape, None if there is none."""
    shape = (hidden_size, num_layers)
    return next((row for row in FIGURE_4 if (row.hidden_size, row.num_layers) == shape), None)


def paper_bits_per_byte(row: PaperRow) -> float:
    """Return a row's loss in bits per byte, ignoring that the paper kept only 10,000 tokens."""
    return row.loss * BITS_PER_NAT
