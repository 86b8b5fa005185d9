"""Publish a finished run or a page on the Hugging Face Hub; --dry_run shows what would be sent.

    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs
    python scripts/push_to_hub.py --model runs/xs --repo me/tinystories-xs --dry_run
    python scripts/push_to_hub.py --site site --space me/tinystories-demo

Log in with `hf auth login` first, or set HF_TOKEN. Pushing again uploads only changed files.
"""

from tinystories_hf.core.script import report_user_errors
from tinystories_hf.hub.arguments import PushRequest, SpaceRequest, parse_push_arguments


def main() -> None:
    """Parse, check, publish."""
    request = parse_push_arguments(description=__doc__ or "")
    push_page(request) if isinstance(request, SpaceRequest) else push_run(request)


def push_run(request: PushRequest) -> None:
    """Publish a run, or show what would be published."""
    from tinystories_hf.core.files import check_writable
    from tinystories_hf.hub import publish

    if request.dry_run:
        print(publish.describe_push(request.model, str(request.hub.hub_model_id), request.stated))
        return
    fix = "copy it to a folder that you can write to: the card is written there"
    check_writable(request.model, "model", fix)
    record = publish.check_finished_run(request.model)
    repository = publish.check_repository(
        request.hub, request.model, record.run_id, request.revision
    )
    if request.stated:
        record.state(request.model, request.stated)
    print(f"published {publish.publish(request.model, repository)}")


def push_page(request: SpaceRequest) -> None:
    """Publish a page as a Space, or show what would be published."""
    from tinystories_hf.hub import space

    wanted = space.SpaceRepository(
        request.space, private=request.private, overwrite=request.overwrite
    )
    if request.dry_run:
        print(space.describe_space(request.site, wanted))
        return
    repository = space.check_space_repository(request.site, wanted)
    print(f"published {space.publish_space(request.site, repository)}")


if __name__ == "__main__":
    with report_user_errors():
        main()
