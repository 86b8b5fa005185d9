"""Numbers of the TinyStories paper (arXiv 2305.07759 v2) that ours stand beside."""

# Figure 4, column "eval loss", read off the image (about +-0.02): (hidden_size, num_layers) -> nats
# per token. The published models of these shapes are 1M, 3M, 8M, 28M, 33M, 1Layer-21M, 2Layers-33M.
EVAL_LOSS = {
    (64, 8): 2.08,
    (128, 8): 1.65,
    (256, 8): 1.38,
    (512, 8): 1.20,
    (768, 4): 1.20,
    (1024, 1): 1.49,
    (1024, 2): 1.27,
}
