"""The stages of dvc.yaml as rules of Snakemake. `tests/test_pipeline.py` runs them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import yaml
from click.testing import CliRunner
from forecast.parameters import FILE, project
from forecast.snakefile import main, write_rules


def test_stage_becomes_a_rule():
    """Inputs, outputs and parameters are named; a folder of code is its files; commands follow one another."""
    stage = {
        "cmd": ["papermill a.ipynb b.ipynb -p seed ${train.seed}", "echo done"],
        "deps": ["a.ipynb", "code", "data/raw"],
        "params": ["train", "promote.limit"],
        "outs": ["b.ipynb", {"results/one.json": {"persist": True}}],
    }
    text = write_rules({"fetch": {"cmd": "get", "outs": ["data/raw"]}, "train": stage})
    assert text.endswith("""rule fetch:
    output: directory('data/raw')
    shell: 'get'


rule train:
    input: 'a.ipynb', files('code'), 'data/raw'
    output: 'b.ipynb', 'results/one.json'
    params: train=config["train"], promote=config["promote"]
    shell: 'papermill a.ipynb b.ipynb -p seed {params.train[seed]} && echo done'
""")


def test_command_prints_all_stages_with_the_values_of_params():
    """Each stage is a rule, and each command has its parameters when Snakemake fills them in."""
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 0, done.output
    stages = yaml.safe_load((project() / "dvc.yaml").read_text())["stages"]
    assert re.findall(r"^rule (\w+):", done.output, flags=re.MULTILINE) == ["all", *stages]
    parameters = yaml.safe_load((project() / FILE).read_text())
    commands = re.findall(r"^    shell: ['\"](.*)['\"]$", done.output, flags=re.MULTILINE)
    filled = [command.format(params=SimpleNamespace(**parameters)) for command in commands]
    assert len(filled) == len(stages)
    assert f"-p n_estimators {parameters['train_rf']['n_estimators']} " in "".join(filled)
    assert not re.search(r"[{}$]", "".join(filled).replace("fit_intercept: True", ""))
