"""Publish a finished run on the Hugging Face Hub, or show what would be published.

    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs
    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs --dry_run

Log in with `hf auth login` first, or set HF_TOKEN. Pushing again uploads only what differs.
"""

from tinystories_hf.errors import report_user_errors
from tinystories_hf.script_arguments import parse_push_arguments


def main() -> None:
    """Parse, check, publish."""
    request = parse_push_arguments(description=__doc__ or "")
    from tinystories_hf import hub

    if request.dry_run:
        print(hub.describe_push(request.model, str(request.hub.hub_model_id)))
        return
    run_id = hub.check_run(request.model).run_id
    destination = hub.check_destination(request.hub, request.model, run_id, request.revision)
    print(f"published {hub.publish(request.model, destination)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
