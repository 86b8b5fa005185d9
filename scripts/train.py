"""Train a TinyStories model; the run directory can be loaded with Transformers.

    python scripts/train.py
    python scripts/train.py --config configs/quickstart.yaml
    accelerate launch --config_file configs/accelerate/multi_gpu.yaml scripts/train.py
    python scripts/train.py --dataset stories.txt --tokenizer ./tok --max_steps 200

Without --config, the XS model of configs/xs.yaml is trained on roneneldan/TinyStories. Every
setting below can be given in a YAML file or as a flag; flags take precedence.
"""

from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.processes import is_main_process
from tinystories_hf.core.script import report_user_errors
from tinystories_hf.training.signals import stop_on_signals


def main() -> None:
    """Parse the settings, then train; torch is imported only after the settings are validated."""
    arguments = parse_arguments(description=__doc__ or "")
    with stop_on_signals() as stop:
        if is_main_process():  # importing torch and transformers takes seconds
            print(f"starting    {arguments.training.output_dir}", flush=True)
        from tinystories_hf.training.train import train

        train(arguments, stop)


if __name__ == "__main__":
    with report_user_errors():
        main()
