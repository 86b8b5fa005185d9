"""Train a TinyStories model and leave a run directory that stock Transformers loads.

    python scripts/train.py
    python scripts/train.py --config configs/quickstart.yaml
    accelerate launch --config_file configs/accelerate/multi_gpu.yaml scripts/train.py
    python scripts/train.py --dataset stories.txt --tokenizer ./tok --max_steps 200

Without --config it trains the XS model of configs/xs.yaml on roneneldan/TinyStories. Every setting
below can stand in a YAML file or on the command line; the command line wins.
"""

from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.script import report_user_errors
from tinystories_hf.training.signals import stop_on_signals


def main() -> None:
    """Parse, then train; torch is imported only once the settings are known to be sound."""
    arguments = parse_arguments(description=__doc__ or "")
    with stop_on_signals() as stop:
        from tinystories_hf.training.train import train

        train(arguments, stop)


if __name__ == "__main__":
    with report_user_errors():
        main()
