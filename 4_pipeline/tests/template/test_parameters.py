"""params.yaml: validation and error messages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from forecast.__main__ import main
from forecast.terms.errors import ParameterError
from forecast.terms.parameters import check, read, read_stage
from places import PROJECT, copy_project

COMMITTED = PROJECT / "params.yaml"
PV = {"column": "PV", "unit": "MW"}
BOTH = {"solar_GW": 1, "wind_GW": 1}


def columns(**described):
    """Return the columns of an own file, as part of the section `fetch.csv`."""
    return {"columns": described}


@pytest.fixture
def changed(tmp_path):
    """A function that writes the committed parameters with one value changed."""

    def write(stage, key, value):
        content = yaml.safe_load(COMMITTED.read_text())
        content[stage][key] = value
        file = Path(shutil.copy(PROJECT / "dvc.yaml", tmp_path)).with_name("params.yaml")
        file.write_text(yaml.safe_dump(content))
        return file

    return write


@pytest.mark.parametrize(
    ("stage", "key", "value", "where"),
    [
        ("train_rf", "n_estimators", "many", r"train_rf\.n_estimators is invalid(?s:.)*integer, from 1, to 2000"),
        ("train_rf", "n_estimatorz", 5, r"train_rf\.n_estimatorz is unknown\. Did you mean `n_estimators`\?"),
        ("split", "test_fraction", 2, r"split\.test_fraction is invalid"),
        ("fetch", "source", "moon", r"fetch\.source is invalid"),
        ("fetch", "sha256", {"weather.csv": "0"}, r"fetch\.sha256\.weather\.csv"),
        ("report", "week", "2016-40", r"report\.week is invalid"),
        ("prepare", "last_year", 1980, "prepare is invalid(?s:.)*is after last_year 1980"),
        ("train_gradient_boosting", "coverage", float("nan"), r"train_gradient_boosting\.coverage is invalid"),
        ("train_rf", "title", 5, r"train_rf\.title is invalid"),
        ("train_rf", "limits", {"seed": {"gee": 0}}, r"limits\.seed\.gee is unknown\. Did you mean `ge`\?"),
        ("train_rf", "limits", {"seed": {"type": "int", "pattern": "a"}}, r"train_rf\.limits do not match"),
        ("compare", "rank_by", "r2_sun", r"compare\.rank_by is invalid"),
        ("promote", "min_r2", {"solar": 0.5}, r"promote\.min_r2\.wind is missing"),
        ("promote", "max_night", {"solar": 1, "wind": 1}, r"max_night\.wind is unknown\.\n  expected: solar\n"),
    ],
)
def test_invalid_parameter_is_named(changed, stage, key, value, where):
    """The error names the key, for one stage and for the whole file."""
    file = changed(stage, key, value)
    for look in (lambda: read(file), lambda: read_stage(file, stage)):
        with pytest.raises(ParameterError, match=where):
            look()


def test_parameters_of_other_stages_are_not_validated(changed):
    """A stage validates only its own section."""
    assert read_stage(changed("train_rf", "n_estimators", "many"), "split").test_fraction == 0.2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no stages"),
        ("split: [1", r"is not YAML(?s:.)*params\.yaml\", line 1"),
        ("split: {test_fraction: 0.2, test_fraction: 0.3}", "is not YAML(?s:.)*duplicate key"),
        ("split: {test_fraction: 0.2} # gr\u00fcn".encode("cp1252"), "is not YAML in UTF-8(?s:.)*decode"),
        ("fetch: {source: csv}", r"fetch is invalid(?s:.)*requires a csv section(?s:.)*own/README\.md"),
        ("moon: {a: 1}", r"moon is unknown(?s:.)*for a training stage, add `train_...` to dvc\.yaml"),
        ("a: 1\nreport:\n  week: 2016-02-30", r"day is out of range(?s:.)*params\.yaml\", line 3"),
        ("a: 1\nb: " + "[" * 5000 + "]" * 5000, r"depth(?s:.)*params\.yaml\", line 2"),
    ],
)
def test_broken_params_file_is_an_error(tmp_path, content, words):
    """Invalid YAML, a missing file and unknown stages are errors that name their place."""
    file = tmp_path / "params.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    with pytest.raises(ParameterError, match=words):
        read(file)
    with pytest.raises(ParameterError, match=r"no\.yaml"):
        read(tmp_path / "no.yaml")


def times(**described):
    """Return the time column of an own file, as part of the section `fetch.csv`."""
    return {"time": {"column": "Zeit"} | described}


@pytest.mark.parametrize(
    ("section", "where"),
    [
        (columns(solar_GW={"column": "PV"}), r"columns\.solar_GW\.unit is missing"),
        (columns(solar_GW=PV | {"unit": "km"}), r"'km' cannot be converted to the unit of solar_GW"),
        (columns(solar_GW=PV | {"unit": "Mw"}), "Unknown unit(?s:.)*'Mw'"),
        (columns(solar_GW=PV | {"units": "MW"}), r"units is unknown\. Did you mean `unit`\?"),
        (columns(solar_MW=PV), r"csv\.columns\.solar_MW is unknown\. Did you mean `solar_GW`\?"),
        (columns(wind_GW=PV | {"column": "solar_GW"}), "solar_GW and wind_GW have the same column 'solar_GW'"),
        (times(format="%d.%Q"), r"csv\.time\.format is invalid"),
        (times(format="%d.%m.%Y %H:%M %Z"), r"csv\.time\.format(?s:.)*CEST"),
        (times(format="%d.%m.%Y %H:%M %p"), r"csv\.time\.format(?s:.)*%I"),
        *((times(format=form), f"'{form}' does not define the day") for form in ("mixed", "%d.%m.", "%m/%Y")),
        (times(format="%Y-W%V-%u"), r"csv\.time\.format(?s:.)*'%V'"),
        (times(format="%Y-%Y"), r"csv\.time\.format(?s:.)*redefinition"),
        (times(stamp="middle"), r"csv\.time\.stamp is invalid"),
        ({"thousands": "."}, r"decimal and thousands are both '\.'"),
        ({"capacity": {2018: {"solar_GW": 0}}}, r"csv\.capacity\.2018\.solar_GW is invalid"),
        ({"capacity": {2018: {"solar_GW": 1}}}, r"csv\.capacity\.2018\.wind_GW is missing"),
        ({"capacity": {2018: BOTH}}, r"csv\.capacity is invalid(?s:.)*at least 2"),
        ({"capacity": {18: BOTH}}, r"csv\.capacity\.18"),
    ],
)
def test_invalid_description_of_an_own_file_names_the_key(section, where):
    """A missing unit, an unknown key, an invalid value, or a column that is used twice."""
    with pytest.raises(ParameterError, match=where):
        check("fetch", {"source": "csv", "csv": {"file": "own.csv"} | section})


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A function that replaces a section of params.yaml in a copy of the project, the current folder."""
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)

    def change(stage, text):
        others = {name: values for name, values in yaml.safe_load(COMMITTED.read_text()).items() if name != stage}
        Path("params.yaml").write_text(f"{yaml.safe_dump(others)}{stage}:\n  {text}\n")

    return change


def test_copied_pipeline_has_its_own_parameters(copied):
    """In a copy of the project elsewhere, commands read the copy's params.yaml and the files beside it."""
    copied("fetch", "source: csv\n  csv: {file: own/mine.csv}")
    assert "csv" in CliRunner().invoke(main, ["params", "fetch"]).stdout
    done = CliRunner().invoke(main, ["fetch", "--to", "data/raw"])
    assert done.exit_code == 1
    assert str(Path.cwd() / "own" / "mine.csv") in done.stderr
    Path("own/mine.csv").write_text("the table of this folder")
    assert CliRunner().invoke(main, ["fetch", "--to", "data/raw"]).exit_code == 0
    assert Path("data/raw/own.csv").read_bytes() == Path("own/mine.csv").read_bytes()


@pytest.mark.parametrize("value", ["2016-02-30", "[" * 5000 + "]" * 5000, "2016-40"])
@pytest.mark.parametrize("command", ["params", "state --to data"])
def test_first_stage_checks_the_parameters(copied, value, command):
    """The error names the file and the line or key, also for values that end DVC with a traceback."""
    copied("report", f"week: {value}")
    line = Path("params.yaml").read_text().splitlines().index(f"  week: {value}") + 1
    done = CliRunner().invoke(main, command)
    assert (type(done.exception), done.exit_code) == (SystemExit, 1)  # no traceback
    assert "params.yaml" in done.stderr
    assert f"line {line}," in done.stderr or "report.week is invalid" in done.stderr
