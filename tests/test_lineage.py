"""The lineage of the models of a clone in which the pipeline ran."""

from __future__ import annotations

import pytest
from forecast.govern.gate import KINDS, Registry
from mlflow_gate import ModelError


def test_lineage_leads_from_the_data_to_the_alias(in_workplace):
    """Every link of the model in production is known."""
    gate = Registry()
    links = gate.lineage()
    assert [link.kind for link in links] == list(KINDS)
    assert [link.name for link in links if not link.known] == []
    facts = {link.kind: link.facts for link in links}
    hashes = {f"md5 of data/{name}" for name in ("train.parquet", "validation.parquet")}
    assert hashes <= facts["data"].keys()
    assert facts["data"]["source"] == "modelled sample"
    assert ", 2013-01-01T00:00:00Z to 2016-" in facts["data"]["learned"]
    assert facts["stage"]["coverage"] == "0.8"
    assert facts["commit"]["uncommitted changes"] == "no"
    assert gate.lineage(f"wind_solar/{gate.production().version}") == links


@pytest.mark.parametrize(
    ("subject", "error", "text"),
    [
        ("winter", ModelError, "There is no version winter"),
        ("99", ModelError, "There is no version 99"),
        ("9" * 20, ModelError, "There is no version 9999"),
    ],
)
def test_lineage_says_what_it_does_not_know(in_workplace, subject, error, text):
    """A name that leads nowhere is told in words."""
    with pytest.raises(error, match=text):
        Registry().lineage(subject)
