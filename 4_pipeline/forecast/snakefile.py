"""The stages of dvc.yaml as rules of Snakemake, for a pipeline without DVC: `python -m forecast.snakefile`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import click
import yaml

from forecast.parameters import project

# Files and not the folder: Python writes bytecode into it, which changes the folder's time.
HEAD = '''from pathlib import Path

configfile: "params.yaml"


def files(folder):
    """Return the files in a folder of code."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


rule all:
    input: {made}
'''


def write_rules(stages: dict[str, dict[str, Any]]) -> str:
    """Return a Snakefile with a rule for each stage of a dvc.yaml; params.yaml stays the place of the parameters.

    Snakemake compares times of files where DVC compares contents, and has no cache. See `if_dvc_ends.md`.
    """
    outputs = {name: _paths([*stage.get("outs", []), *stage.get("metrics", [])]) for name, stage in stages.items()}
    made = [path for paths in outputs.values() for path in paths]
    rules = [
        _rule(
            name,
            {
                "input": [_read(path, made) for path in _paths(stage.get("deps", []))],
                "output": [repr(path) if _is_file(path) else f"directory({path!r})" for path in outputs[name]],
                "params": [f'{key}=config["{key}"]' for key in _sections(stage)],
                "shell": [repr(_command(stage["cmd"]))],
            },
        )
        for name, stage in stages.items()
    ]
    return "\n\n".join([HEAD.format(made=", ".join(map(repr, made))), *rules])


def _rule(name: str, parts: dict[str, list[str]]) -> str:
    """Return a rule; an empty part is left out."""
    lines = [f"    {part}: {', '.join(values)}\n" for part, values in parts.items() if values]
    return f"rule {name}:\n" + "".join(lines)


def _paths(entries: list[str | dict[str, Any]]) -> list[str]:
    """Return the paths of entries, each of which is a path or a mapping from a path to its flags."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def _is_file(path: str) -> bool:
    """Return whether a path is a file's: the names of this pipeline's folders have no suffix."""
    return bool(PurePosixPath(path).suffix)


def _read(path: str, made: list[str]) -> str:
    """Return a dependency as Snakemake reads it; a folder that no stage makes is its files."""
    return repr(path) if path in made or _is_file(path) else f"files({path!r})"


def _sections(stage: dict[str, Any]) -> list[str]:
    """Return the sections of params.yaml that a stage depends on."""
    return list(dict.fromkeys(name.partition(".")[0] for name in stage.get("params", [])))


def _command(command: str | list[str]) -> str:
    """Return a stage's command, in which `${section.key}` is Snakemake's `{params.section[key]}`."""
    joined = command if isinstance(command, str) else " && ".join(command)
    return re.sub(r"\$\{(\w+)\.(\w+)\}", r"{params.\1[\2]}", joined)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Print the stages of dvc.yaml as rules of Snakemake; see if_dvc_ends.md.

    \b
    Example:  python -m forecast.snakefile > Snakefile
    """
    click.echo(write_rules(yaml.safe_load((project() / "dvc.yaml").read_text())["stages"]), nl=False)


if __name__ == "__main__":
    main()
