"""The command line: arguments and output. Progress goes to standard error, results to standard output."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import tomllib
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click

from mlflow_gate.errors import ConfigError, GateError, ModelError
from mlflow_gate.gate import Gate
from mlflow_gate.registry import Registry

EXAMPLE = '[tool.mlflow-gate]\ngate = "gate:gate"'
CELL_WIDTH, LINE_WIDTH = 48, 200  # characters
RUN = re.compile("[0-9a-f]{32}")
REFUSED, DISQUALIFIED = 3, 4  # exit codes


class Group(click.Group):
    """A command group that prints MLflow's errors without a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; convert MLflow's exceptions to ModelError."""
        try:
            return super().invoke(context)
        except Exception as error:
            if not type(error).__module__.startswith("mlflow."):
                raise
            raise ModelError("MLflow reported an error.", value=f"{error!s:.500}") from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlflow-gate")
def main() -> None:
    """Promote MLflow models through a gate, with history, rollback and lineage.

    MLFLOW_TRACKING_URI selects the tracking server. NAME is a registered model; it is optional if a pyproject.toml
    sets `[tool.mlflow-gate] gate = "module:object"`.

    \b
    Example:  mlflow-gate history
    """


name_argument = click.argument("name", required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
gate_option = click.option("--gate", "module", metavar="MODULE:OBJECT", help="The gate to use; it sets the registry.")


def find_gate(gate_path: str | None = None) -> Gate | None:
    """Return the gate at ``gate_path`` (`module:object`) or in the nearest pyproject.toml; None if there is neither."""
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents):
        file = folder / "pyproject.toml"
        try:
            setting = dict(tomllib.loads(file.read_text())["tool"]["mlflow-gate"])
            break
        except (FileNotFoundError, KeyError, TypeError):
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read.", value=error) from None
    else:
        folder, setting = cwd, {}
    if not gate_path and (setting.keys() - {"gate"} or not isinstance(setting.get("gate", ""), str)):
        raise ConfigError(
            f"{folder / 'pyproject.toml'} has invalid settings for mlflow-gate.", value=setting, expected=EXAMPLE
        )
    if (gate_path := gate_path or setting.get("gate")) is None:
        return None
    sys.path.insert(0, str(folder))
    try:
        gate = resolve_name(gate_path)
        gate = gate() if callable(gate) else gate
    except GateError:
        raise
    except Exception as error:
        expected = f"module:object, importable from {folder}, such as\n{EXAMPLE}"
        raise ConfigError(
            "The gate cannot be imported.", value=f"{gate_path}: {error!r:.300}", expected=expected
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not isinstance(gate, Gate):
        expected = "an mlflow_gate.Gate, or a function that returns one"
        raise ConfigError(f"{gate_path} is not a gate.", value=repr(gate)[:200], expected=expected)
    return gate


def find_registry(name: str | None, gate_path: str | None = None) -> Registry:
    """Return the `Registry` of the registered model ``name``; the default is the gate's registry."""
    gate = find_gate(gate_path)
    if gate and name in (None, gate.registry.name):
        return gate.registry
    if name is None:
        raise ConfigError("No registered model is specified.", expected=f"NAME, or in a pyproject.toml:\n{EXAMPLE}")
    return Registry(name)


@main.command()
@click.argument("candidate", required=False)
@click.option("--why", default="", help="The reason to record in the history.")
@click.option("--dry-run", is_flag=True, help="Show the decision without promoting.")
@click.option("--force", is_flag=True, help="Overrule a refusal; this requires --why and is recorded.")
@gate_option
def promote(candidate: str | None, module: str | None, dry_run: bool, **options: Any) -> None:
    """Evaluate a candidate and promote it if it passes; exit with code 3 if it is refused.

    CANDIDATE is a run id, or a JSON file with run_id and, if the run has several models, model_uri; the default is the
    gate's candidate file. Exit code 4: promoted without a comparison because the champion was disqualified.

    \b
    Example:  mlflow-gate promote --why "better in winter"
              mlflow-gate promote results/candidate.json --dry-run
    """
    if (gate := find_gate(module)) is None:
        raise ConfigError("No gate is specified.", expected=f"--gate MODULE:OBJECT, or in a pyproject.toml:\n{EXAMPLE}")
    chosen = _read_candidate(candidate or gate.candidate_file)
    click.echo("evaluating the candidate and the model in production", err=True)
    decision = gate.promote(**chosen, dry_run=dry_run, **options)
    print_rows(decision.table)
    click.echo(("dry run, nothing changed; " if dry_run else "") + decision.words)
    if not decision.promoted:
        raise SystemExit(REFUSED)
    if decision.disqualified:
        click.echo(f"the model in production was disqualified: {decision.disqualified}", err=True)
        raise SystemExit(DISQUALIFIED)


@main.command()
@name_argument
@click.option("--to", metavar="VERSION", help="The version to restore; by default the previous one.")
@click.option(
    "--why", default="rolled back on the command line", show_default=True, help="The reason to record in the history."
)
@gate_option
def rollback(name: str | None, to: str | None, why: str, module: str | None) -> None:
    """Restore the previous version; a second rollback restores the one before it.

    The alias moves only if the version can be loaded. After a rollback, the gate refuses the replaced model until
    another candidate is promoted or somebody overrules the gate.

    \b
    Example:  mlflow-gate rollback --why "too low at noon"
              mlflow-gate rollback reviews --to 3
    """
    registry = find_registry(name, module)
    click.echo("loading the version to restore", err=True)
    now = registry.rollback(to, why)
    click.echo(f"{now} is in production again: {now.move.reason}")


@main.command()
@name_argument
@json_option
@gate_option
def history(name: str | None, as_json: bool, module: str | None) -> None:
    """Show each version that was in production, with the time, the user and the reason, the latest last.

    The table truncates long reasons; JSON does not. The command also records moves made by hand, as in MLflow's UI.

    \b
    Example:  mlflow-gate history reviews
    """
    registry = find_registry(name, module)
    moves, rows = registry.history(note=True), []
    if moves and registry.production() is None:
        click.echo("No model is in production: the alias was removed. Next: mlflow-gate rollback", err=True)
    for move in moves:
        row = {"": move.number, "version": move.version, "what": move.action, "since": move.when or "not recorded"}
        row |= {"who": move.who, move.label: move.score, "replaced": move.replaced, "why": move.why}
        rows.append(row)
    if as_json:
        click.echo(json.dumps([asdict(move) for move in moves], indent=2))
    elif rows:
        print_rows(rows)
    else:
        click.echo(f"No version of {registry.name} was ever in production. Next: mlflow-gate promote")


@main.command()
@name_argument
@click.option("--decision", type=click.Path(path_type=Path), help="JSON file with this working tree's last decision.")
@gate_option
def status(name: str | None, decision: Path | None, module: str | None) -> None:
    """Show the version in production, its commit, and whether this working tree's decision agrees with it.

    \b
    Example:  mlflow-gate status --decision results/decision.json
    """
    click.echo(find_registry(name, module).status(decision))


@main.command()
@click.argument("subject", metavar="[NAME/VERSION]", required=False)
@json_option
@gate_option
def lineage(subject: str | None, as_json: bool, module: str | None) -> None:
    """Show a model's lineage: data, commit, run, version, decision, time in production.

    Without NAME, the model is the configured gate's; without VERSION, the version is the one in production.

    \b
    Example:  mlflow-gate lineage reviews/3
    """
    name, _, version = (subject or "").removeprefix("models:/").rpartition("/")
    if not name and not version.isdecimal():
        name, version = version, ""
    links = find_registry(name or None, module).lineage(version or None)
    if as_json:
        click.echo(json.dumps([asdict(link) for link in links], indent=2))
        return
    for link in links:
        click.echo(f"{click.style(f'{link.kind:12}', bold=True)}{link.name}")
        for line in [*(f"{fact}: {value}" for fact, value in link.facts.items()), *filter(None, [link.url])]:
            click.echo(f"            {textwrap.shorten(line, LINE_WIDTH, placeholder='…')}")


def _read_candidate(candidate: str | Path | None) -> dict[str, Any]:
    """Return the candidate's run_id and, if known, its model_uri."""
    if candidate is None:
        raise click.UsageError("CANDIDATE is missing: pass a run id, or a JSON file with run_id.")
    if isinstance(candidate, str) and RUN.fullmatch(candidate):
        return {"run_id": candidate}
    try:
        content = json.loads(Path(candidate).read_text())
        return {"run_id": str(content["run_id"]), "model_uri": content.get("model_uri")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a run id of 32 characters, or a JSON file with run_id"
        raise ModelError(f"{candidate} is not a candidate.", value=repr(error), expected=expected) from None


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table with the union of their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    texts = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    cells = [[textwrap.shorten(text, CELL_WIDTH, placeholder="…") for text in row] for row in texts]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
