"""Commands for models: promotion, rollback, history and lineage."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import BaseModel, Field

from workshop.cli import json_option, one_line, print_rows, report
from workshop.data import schema
from workshop.errors import ModelError, ParameterError, PromotionRefused
from workshop.models import gate, registry
from workshop.models.store import connect
from workshop.parameters import read_stage
from workshop.settings import get_settings

if TYPE_CHECKING:
    from workshop.models.lineage import Link


@click.command()
@click.argument("candidate", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--why", help="The reason, for the record.")
@click.option("--dry-run", is_flag=True, help="Show the decision, and change nothing.")
@click.option("--force", is_flag=True, help="Promote even when the gate refuses; needs --why, and is recorded.")
def promote(candidate: Path | None, why: str | None, dry_run: bool, force: bool) -> None:
    """Put a candidate before the gate; promote it when it passes, exit 3 when it is not promoted.

    CANDIDATE is the file that the stage `compare` writes; by default the pipeline's own.

    \b
    Example:  workshop promote --why "better in winter"
              workshop promote --dry-run
    """
    if force and not why:
        raise ParameterError("A forced promotion needs a reason.", expected="--force --why REASON")
    report("the gate scores the candidate and the model in production")
    pipeline = get_settings().pipeline
    policy = read_stage(pipeline / "params.yaml", "promote")
    chosen = _read_candidate(candidate or pipeline / "results" / "candidate.json")
    held_out = schema.read(pipeline / "data" / "test.parquet")
    client = connect()
    verdict, champion = registry.evaluate_candidate(chosen.run_id, chosen.model_uri, held_out, policy, client)
    verdict = gate.force(verdict) if force else verdict
    if verdict.promoted and not dry_run:
        registry.apply(verdict, chosen.run_id, chosen.model_uri, champion, why or "by command", client)
    # The terminal's width, less the verdicts, for the three other columns.
    print_rows(verdict.table, as_json=False, widest=max(20, (shutil.get_terminal_size().columns - 13) // 3))
    click.echo(("dry run, nothing is changed; " if dry_run else "") + verdict.reason)
    if not verdict.promoted:
        raise SystemExit(PromotionRefused.exit_code)


class _Candidate(BaseModel):
    """The run and the model that the stage `compare` chose."""

    run_id: str = Field(pattern="^[0-9a-f]{32}$")
    model_uri: str = Field(pattern="^models:/m-[0-9a-f]{32}$")


def _read_candidate(file: Path) -> _Candidate:
    try:
        return _Candidate.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file} names no candidate.",
            value=error,
            expected="JSON with run_id and model_uri (models:/m-...), as the stage `compare` writes it",
            next_step="cd 4_pipeline && dvc repro",
        ) from None


@click.command()
@click.option("--to", metavar="VERSION", help="The version to bring back; by default the one before.")
@click.option("--why", default="rolled back on the command line", show_default=True, help="The reason, for the record.")
def rollback(to: str | None, why: str) -> None:
    """Bring back the version that was in production before. A second rollback goes one version further back.

    The version is loaded and tried out first. A version that was rolled back from comes back by its number.

    \b
    Example:  workshop rollback --why "too low at noon"
              workshop rollback --to 3
    """
    report("the version is loaded and tried out")
    now = registry.rollback(to, why)
    click.echo(f"{now.name} version {now.version} is in production again ({now.stage or 'registered by hand'})")


@click.command()
@json_option
def history(as_json: bool) -> None:
    """Show what was in production, since when, by whom and why; the last line is in production now.

    A long reason is cut in the table; JSON has all of it. A move that was made by hand, such as in the MLflow UI, is
    written down, so that a rollback can go back to it.

    \b
    Example:  workshop history
    """
    client = connect()
    registry.note(client)
    moves = registry.history(client)
    if moves and registry.version_in_production(client) is None:
        click.echo("Nothing is in production now: the alias was taken away. Next: workshop rollback", err=True)
    if as_json:
        print_rows([asdict(move) for move in moves], as_json=True)
        return
    if not moves:
        click.echo("Nothing was ever in production. Next: workshop repro")
        return
    rows = [
        {
            "": move.number,
            "version": move.version,
            "what": move.action,
            "since": move.when or "not recorded",
            "who": one_line(move.who or "", 16),
            "R2": f"{move.scores['r2']:.4f}" if "r2" in move.scores else None,
            "replaced": move.replaced,
            "why": one_line(move.why or "", 40),
        }
        for move in moves
    ]
    print_rows(rows, as_json=False)


@click.command()
@click.argument("subject", metavar="[MODEL|RUN|PREDICTION]", required=False)
@click.option("--verify", is_flag=True, help="Check that each link exists and is unchanged; exit 1 if not.")
@json_option
def lineage(subject: str | None, verify: bool, as_json: bool) -> None:
    """Show where a model comes from: data, commit, stage, notebook, run, version, decision, production.

    A MODEL is a version's number (by default the one in production), a RUN its id, and a PREDICTION a file that names
    its model: an answer of the dashboard's /predict, a downloaded table, a report.

    \b
    Example:  workshop lineage --verify
              workshop lineage 4_pipeline/results/report.html
    """
    report("the links are read from MLflow" + (" and checked" if verify else ""))
    from workshop.models import lineage as chain  # imports scikit-learn

    client = connect()
    links = chain.trace(subject, client)
    links = chain.check(links, client) if verify else links
    broken = [link for link in links if link.trouble]
    if as_json:
        click.echo(json.dumps([link.as_dict() for link in links], indent=2))
    else:
        for link in links:
            _print_link(link, verified=verify and link.known and link.kind in chain.CHECKS)
    if broken:
        for link in broken:
            click.echo(f"broken: {link.kind}: {link.trouble}", err=True)
        raise SystemExit(1)


def _print_link(link: Link, *, verified: bool) -> None:
    mark = "" if not verified else click.style(" broken", "red") if link.trouble else " ok"
    kind = click.style(f"{link.kind:12}", bold=True)
    click.echo(f"{kind}{one_line(link.name)}{mark}")
    for name, value in link.facts.items():
        click.echo(f"            {name}: {one_line(value)}")
    if link.url:
        click.echo(f"            {link.url}")
