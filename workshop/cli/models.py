"""The registry: what goes to production, what was there, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from workshop.cli.printing import json_option, print_rows


@click.command()
@click.argument("candidate", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option(
    "--decision",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the decision here and exit 0 even when it is a refusal: a pipeline goes on.",
)
@click.option("--why", help="The reason, for the record.")
@click.option("--dry-run", is_flag=True, help="Say what the gate says, and change nothing.")
@click.option("--force", is_flag=True, help="Promote whatever the gate says; the record tells, and --why is needed.")
def promote(candidate: Path | None, decision: Path | None, why: str | None, dry_run: bool, force: bool) -> None:
    """Put a candidate before the gate; promote it when it passes, exit 3 when it is refused.

    CANDIDATE is the file that the stage `compare` writes; by default the pipeline's own.

    \b
    Example:  workshop promote --why "better in winter"
              workshop promote --dry-run
    """
    from workshop.data import schema
    from workshop.errors import ParameterError, PromotionRefused
    from workshop.models import registry
    from workshop.models.promotion import Policy
    from workshop.parameters import read_stage
    from workshop.settings import get_settings

    if force and not why:
        raise ParameterError("A promotion that is forced needs a reason.", expected="--force --why REASON")
    pipeline = get_settings().pipeline
    policy = Policy(**read_stage(pipeline / "params.yaml", "promote").model_dump())
    run_id, model_uri = _read_candidate(candidate or pipeline / "results" / "candidate.json")
    held_out = schema.read(pipeline / "data" / "test.parquet")
    verdict, champion = registry.judge(run_id, model_uri, held_out, policy)
    if force:
        verdict = registry.force(verdict)
    now = champion
    if verdict.promoted and not dry_run:
        now = registry.apply(verdict, run_id, model_uri, champion, why or "promoted on the command line")
    record = verdict.as_dict() | {"candidate_run": run_id, "production": now.as_dict() if now else None}
    if decision:
        decision.parent.mkdir(parents=True, exist_ok=True)
        decision.write_text(json.dumps(record, indent=1) + "\n")
    marks = {True: "passed", False: "failed"}
    rules = [
        {"rule": rule.name, "found": rule.shown, "allowed": rule.limit, "verdict": marks[rule.passed]}
        for rule in verdict.rules
    ]
    print_rows(rules, as_json=False)
    click.echo(("dry run, nothing is changed; " if dry_run else "") + verdict.reason)
    if not verdict.promoted and not decision:
        raise SystemExit(PromotionRefused.exit_code)


def _read_candidate(file: Path) -> tuple[str, str]:
    """Return the id of the run and the address of the model that a file names."""
    from workshop.errors import ModelError

    try:
        named = json.loads(file.read_text())
        return named["run_id"], named["model_uri"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} names no candidate.",
            value=repr(error),
            expected="JSON with run_id and model_uri, as the stage `compare` writes it",
            next_step="cd 4_pipeline && dvc repro",
        ) from None


@click.command()
@click.option("--to", metavar="VERSION", help="Which version comes back; by default the one before the last move.")
@click.option("--why", default="rolled back on the command line", show_default=True, help="The reason, for the record.")
def rollback(to: str | None, why: str) -> None:
    """Bring back the version that was in production before; it is loaded first, and the record tells.

    \b
    Example:  workshop rollback --why "too low at noon"
              workshop rollback --to 3
    """
    from workshop.models import registry

    now = registry.rollback(to, why)
    click.echo(f"{now.name} version {now.version} is in production again ({now.stage or 'registered by hand'})")


@click.command()
@json_option
def history(as_json: bool) -> None:
    """Show what was in production, since when, by whom and why; the last line is what is there now."""
    from workshop.models.history import read

    moves = read()
    if as_json:
        print_rows([move.as_dict() for move in moves], as_json=True)
        return
    if not moves:
        click.echo("Nothing was ever in production. Next: workshop repro")
        return
    rows = [
        {
            "": move.number,
            "version": move.version + (" (deleted)" if move.deleted else ""),
            "what": move.action,
            "since": move.when or "not recorded",
            "who": move.who,
            "R2": f"{move.scores['r2']:.4f}" if "r2" in move.scores else None,
            "replaced": move.replaced,
            "why": move.why,
        }
        for move in moves
    ]
    print_rows(rows, as_json=False)


@click.command()
@click.argument("subject", metavar="[MODEL|RUN|PREDICTION]", required=False)
@click.option("--verify", is_flag=True, help="Check that each link still exists and is what it was; exit 1 if not.")
@json_option
def lineage(subject: str | None, verify: bool, as_json: bool) -> None:
    """Show where a model comes from: data, commit, stage, notebook, run, version, decision, production.

    A MODEL is a version's number (by default the one in production), a RUN its id, and a PREDICTION a file that a model
    spoke in: an answer of the dashboard's /predict, a downloaded table, a report.

    \b
    Example:  workshop lineage --verify
              workshop lineage 4_pipeline/results/report.html
    """
    from workshop.models import lineage as chain
    from workshop.models.lineage_checks import check

    links = chain.trace(subject)
    if verify:
        links = check(links)
    broken = [link for link in links if link.trouble]
    if as_json:
        click.echo(json.dumps([link.as_dict() for link in links], indent=2))
    else:
        for link in links:
            _print_link(link, verify=verify)
    if broken:
        for link in broken:
            click.echo(f"broken: {link.kind}: {link.trouble}", err=True)
        raise SystemExit(1)


def _print_link(link, *, verify: bool) -> None:
    mark = "" if not verify or not link.known else click.style(" broken", "red") if link.trouble else " ok"
    kind = click.style(f"{link.kind:12}", bold=True)
    click.echo(f"{kind}{link.name if link.known else 'not recorded'}{mark}")
    for name, value in link.facts.items():
        click.echo(f"            {name}: {value}")
    if link.url:
        click.echo(f"            {link.url}")
