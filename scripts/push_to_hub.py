"""Publish a run, prepared rows or a page on the Hugging Face Hub; --dry_run shows what is sent.

    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs
    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs --dry_run
    python scripts/push_to_hub.py --rows PREPARED_FOLDER --repo me/tinystories-rows
    python scripts/push_to_hub.py --site site --space me/tinystories-demo

Log in with `hf auth login` first, or set HF_TOKEN. Pushing again uploads only changed files.
"""

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.hub.arguments import parse_push_arguments


def main() -> None:
    """Parse, check, publish."""
    request = parse_push_arguments(description=__doc__ or "")
    from tinystories_hf.hub.push import push

    print(push(request))


if __name__ == "__main__":
    with report_user_errors():
        main()
