"""Publish what scripts/push_to_hub.py is asked for, or describe what would be published."""

from __future__ import annotations

from tinystories_hf.core.files import check_writable
from tinystories_hf.hub import publish, rows, space
from tinystories_hf.hub.arguments import PushRequest, RowsRequest, SpaceRequest


def push(request: PushRequest | RowsRequest | SpaceRequest) -> str:
    """Publish a run, rows or a page; with `dry_run`, return what would be published instead.

    Raises:
        UserError: it cannot be published.
        RunError: the upload failed.
    """
    if isinstance(request, SpaceRequest):
        return _push_page(request)
    return _push_rows(request) if isinstance(request, RowsRequest) else _push_run(request)


def _push_run(request: PushRequest) -> str:
    if request.dry_run:
        return publish.describe_push(request.model, str(request.hub.hub_model_id), request.stated)
    fix = "copy it to a folder that you can write to: the card is written there"
    check_writable(request.model, "model", fix)
    record = publish.check_finished_run(request.model)
    repository = publish.check_repository(
        request.hub, request.model, record.run_id, request.revision
    )
    if request.stated:
        record.state(request.model, request.stated)
    return f"published {publish.publish(request.model, repository)}"


def _push_rows(request: RowsRequest) -> str:
    wanted = rows.RowsRepository(request.repo, private=request.private, overwrite=request.overwrite)
    if request.dry_run:
        return rows.describe_rows(request.rows, wanted)
    return f"published {rows.publish_rows(request.rows, wanted)}"


def _push_page(request: SpaceRequest) -> str:
    wanted = space.SpaceRepository(
        request.space, private=request.private, overwrite=request.overwrite
    )
    if request.dry_run:
        return space.describe_space(request.site, wanted)
    repository = space.check_space_repository(request.site, wanted)
    return f"published {space.publish_space(request.site, repository)}"
