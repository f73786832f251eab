"""The command line: arguments and printing only. Progress goes to standard error, results to standard output."""

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

EXAMPLE = '[tool.mlflow-gate]\ngate = "judge:gate"'
WIDEST, MOST = 48, 200  # characters of a cell, and of a line
RUN = re.compile("[0-9a-f]{32}")
REFUSED, DISQUALIFIED = 3, 4  # exit codes


class Group(click.Group):
    """A group of commands that print what MLflow says, and no traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; an error of MLflow becomes a message."""
        try:
            return super().invoke(context)
        except Exception as error:
            if not type(error).__module__.startswith("mlflow."):
                raise
            raise ModelError("MLflow refused.", value=f"{error!s:.500}") from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mlflow-gate")
def main() -> None:
    """A gate with a memory for MLflow's registered models.

    The server is the one that MLFLOW_TRACKING_URI names. NAME is a registered model; it may be left out where a
    pyproject.toml says `[tool.mlflow-gate] gate = "module:object"`.

    \b
    Example:  mlflow-gate history
    """


name_argument = click.argument("name", required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
gate_option = click.option("--gate", "module", metavar="MODULE:OBJECT", help="The gate, and so its registry.")


def find_gate(named: str | None = None) -> Gate | None:
    """Return the gate that ``named`` (`module:object`) or the next pyproject.toml names; None without either."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        try:
            setting = dict(tomllib.loads(file.read_text())["tool"]["mlflow-gate"])
            break
        except (FileNotFoundError, KeyError, TypeError):
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read.", value=error) from None
    else:
        folder, setting = here, {}
    if not named and (setting.keys() - {"gate"} or not isinstance(setting.get("gate", ""), str)):
        raise ConfigError(f"{folder / 'pyproject.toml'} cannot be used.", value=setting, expected=EXAMPLE)
    if (named := named or setting.get("gate")) is None:
        return None
    sys.path.insert(0, str(folder))
    try:
        gate = resolve_name(named)
        gate = gate() if callable(gate) else gate
    except GateError:
        raise
    except Exception as error:
        expected = f"module:object, from {folder}, as in\n{EXAMPLE}"
        raise ConfigError(
            "The gate cannot be imported.", value=f"{named}: {error!r:.300}", expected=expected
        ) from error
    finally:
        sys.path.remove(str(folder))
    if not isinstance(gate, Gate):
        expected = "a mlflow_gate.Gate, or a function that returns one"
        raise ConfigError(f"{named} is no gate.", value=repr(gate)[:200], expected=expected)
    return gate


def find_registry(name: str | None, named: str | None = None) -> Registry:
    """Return the registry of the gate, or one of a name."""
    gate = find_gate(named)
    if gate and name in (None, gate.registry.name):
        return gate.registry
    if name is None:
        raise ConfigError("No registered model is named.", expected=f"its name; or in a pyproject.toml:\n{EXAMPLE}")
    return Registry(name)


@main.command()
@click.argument("candidate", required=False)
@click.option("--why", default="", help="The reason, for the record.")
@click.option("--dry-run", is_flag=True, help="Show the decision, and change nothing.")
@click.option("--force", is_flag=True, help="Promote even when the gate refuses; needs --why, and is recorded.")
@gate_option
def promote(candidate: str | None, module: str | None, dry_run: bool, **options: Any) -> None:
    """Put a candidate before the gate; promote it when it passes, exit 3 when it is refused.

    CANDIDATE is a run's id, or a JSON file with run_id and, if the run has more than one model, model_uri; by default
    the file of the gate. Exit 4: promoted without a comparison, since the model in production was disqualified.

    \b
    Example:  mlflow-gate promote --why "better in winter"
              mlflow-gate promote results/candidate.json --dry-run
    """
    if (gate := find_gate(module)) is None:
        raise ConfigError("No gate is named.", expected=f"--gate MODULE:OBJECT; or in a pyproject.toml:\n{EXAMPLE}")
    chosen = _read_candidate(candidate or gate.candidate_file)
    click.echo("the gate scores the candidate and the model in production", err=True)
    decision = gate.promote(**chosen, dry_run=dry_run, **options)
    print_rows(decision.table)
    click.echo(("dry run, nothing is changed; " if dry_run else "") + decision.words)
    if not decision.promoted:
        raise SystemExit(REFUSED)
    if decision.disqualified:
        click.echo(f"the model in production was disqualified: {decision.disqualified}", err=True)
        raise SystemExit(DISQUALIFIED)


@main.command()
@name_argument
@click.option("--to", metavar="VERSION", help="The version to bring back; by default the one before.")
@click.option("--why", default="rolled back on the command line", show_default=True, help="The reason, for the record.")
@gate_option
def rollback(name: str | None, to: str | None, why: str, module: str | None) -> None:
    """Bring back the version that was in production before. A second rollback goes one version further back.

    The version is loaded first. The gate refuses the model that was rolled back from, until another candidate is
    promoted or a person forces it.

    \b
    Example:  mlflow-gate rollback --why "too low at noon"
              mlflow-gate rollback reviews --to 3
    """
    registry = find_registry(name, module)
    click.echo("loading the version", err=True)
    now = registry.rollback(to, why)
    click.echo(f"{now} is in production again: {now.move.reason}")


@main.command()
@name_argument
@json_option
@gate_option
def history(name: str | None, as_json: bool, module: str | None) -> None:
    """Show what was in production, since when, by whom and why; the last line is in production now.

    A long reason is cut in the table; JSON has all of it. A move by hand, as in MLflow's UI, is written down.

    \b
    Example:  mlflow-gate history reviews
    """
    registry = find_registry(name, module)
    moves, rows = registry.history(note=True), []
    if moves and registry.production() is None:
        click.echo("Nothing is in production now: the alias was removed. Next: mlflow-gate rollback", err=True)
    for move in moves:
        row = {"": move.number, "version": move.version, "what": move.action, "since": move.when or "not recorded"}
        row |= {"who": move.who, move.label: move.score, "replaced": move.replaced, "why": move.why}
        rows.append(row)
    if as_json:
        click.echo(json.dumps([asdict(move) for move in moves], indent=2))
    elif rows:
        print_rows(rows)
    else:
        click.echo(f"Nothing of {registry.name} was ever in production. Next: mlflow-gate promote")


@main.command()
@name_argument
@click.option("--decision", type=click.Path(path_type=Path), help="JSON of the last decision in this tree.")
@gate_option
def status(name: str | None, decision: Path | None, module: str | None) -> None:
    """Say in a line which version is in production, from where, and whether this tree's decision says the same.

    \b
    Example:  mlflow-gate status --decision results/decision.json
    """
    click.echo(find_registry(name, module).status(decision))


@main.command()
@click.argument("subject", metavar="[NAME/VERSION]", required=False)
@json_option
@gate_option
def lineage(subject: str | None, as_json: bool, module: str | None) -> None:
    """Show where a model comes from: data, commit, run, version, decision, production.

    By default that is the version in production. A VERSION or a NAME alone will do, too; without settings, name the
    registered model.

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
            click.echo(f"            {textwrap.shorten(line, MOST, placeholder='…')}")


def _read_candidate(candidate: str | Path | None) -> dict[str, Any]:
    """Return run_id and, if known, model_uri."""
    if candidate is None:
        raise click.UsageError("Name a CANDIDATE: a run's id, or a JSON file with run_id.")
    if isinstance(candidate, str) and RUN.fullmatch(candidate):
        return {"run_id": candidate}
    try:
        content = json.loads(Path(candidate).read_text())
        return {"run_id": str(content["run_id"]), "model_uri": content.get("model_uri")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "a run's id of 32 characters, or a JSON file with run_id"
        raise ModelError(f"{candidate} names no candidate.", value=repr(error), expected=expected) from None


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; columns are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    texts = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    cells = [[textwrap.shorten(text, WIDEST, placeholder="…") for text in row] for row in texts]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
