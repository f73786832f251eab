"""The registry: what goes to production."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("candidate", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--decision",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the decision here and exit 0 even when it is a refusal: a pipeline goes on.",
)
@click.option("--why", default="promoted on the command line", show_default=True, help="The reason, for the record.")
def promote(candidate: Path | None, decision: Path | None, why: str) -> None:
    """Put a candidate before the gate; promote it when it passes, exit 3 when it is refused.

    CANDIDATE is the file that the stage `compare` writes; by default the pipeline's own.

    \b
    Example:  workshop promote --why "better in winter"
    """
    from workshop.data import schema
    from workshop.errors import ModelError, PromotionRefused
    from workshop.models import registry
    from workshop.models.promotion import Policy
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    pipeline = get_settings().pipeline
    policy = Policy(**read_stage(pipeline / "params.yaml", "promote").model_dump())
    file = candidate or pipeline / "results" / "candidate.json"
    try:
        named = json.loads(file.read_text())
        run_id, model_uri = named["run_id"], named["model_uri"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} names no candidate.",
            value=repr(error),
            expected="JSON with run_id and model_uri, as the stage `compare` writes it",
            next_step="cd 4_pipeline && dvc repro",
        ) from None
    held_out = schema.read(pipeline / "data" / "test.parquet")
    verdict, champion = registry.judge(run_id, model_uri, held_out, policy)
    now = registry.apply(verdict, run_id, model_uri, champion, why) if verdict.promoted else champion
    record = verdict.as_dict() | {"candidate_run": run_id, "production": now.as_dict() if now else None}
    if decision:
        decision.parent.mkdir(parents=True, exist_ok=True)
        decision.write_text(json.dumps(record, indent=1) + "\n")
    click.echo(verdict.reason)
    if not verdict.promoted and not decision:
        raise SystemExit(PromotionRefused.exit_code)
