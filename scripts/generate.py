"""Generate stories with a trained model: a run directory, a model folder, or a Hub name.

    python scripts/generate.py --model runs/xs --prompt "Once upon a time"
    python scripts/generate.py --model runs/xs --prompt "Lily found a key" --num_return_sequences 3
    python scripts/generate.py --model roneneldan/TinyStories-33M --prompt "Tom" --num_beams 5

Stories are sampled at temperature 1 with a fixed seed. They end where the model ends them, and
never exceed the context length of its training. Several prompts are generated in one batch.
"""

from tinystories_hf.core.script import report_user_errors


def main() -> None:
    """Parse, load, generate."""
    from tinystories_hf.generation.arguments import parse_generation_arguments

    asked = parse_generation_arguments(description=__doc__ or "")
    from tinystories_hf.generation.generate import generate, load_for_generation

    model, tokenizer = load_for_generation(asked.model, asked.revision)
    for story in generate(model, tokenizer, asked.prompt, asked.settings):
        print(story, end="\n\n")


if __name__ == "__main__":
    with report_user_errors():
        main()
