"""What the gate is told of a model."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from sklearn.linear_model import LinearRegression

from workshop.data.schema import FEATURES, TARGETS
from workshop.models import evaluation, loading
from workshop.models.promotion import SIGNATURES
from workshop.models.tracking import LEARNED_TAG

FIRST, LAST = "2013-01-01T00:00:00Z", "2016-03-14T06:00:00Z"


@pytest.mark.parametrize(
    ("first", "last", "known"),
    [
        (FIRST, LAST, True),
        (FIRST, FIRST, True),
        (LAST, FIRST, False),  # neither before nor after held-out hours, when compared as text
        ("yesterday", "z", False),  # sorts behind every year
        (FIRST, "2016-03-14 06:00:00+00:00", False),
        (FIRST, "2016-3-14T06:00:00Z", False),
        ("", LAST, False),
        (None, LAST, False),
    ],
)
def test_learned_is_known_only_in_the_form_that_sorts(first, last, known):
    """Tags that somebody else wrote may say anything: other forms of times are compared with none."""
    told = {LEARNED_TAG + "first": first, LEARNED_TAG + "last": last}
    tags = {name: value for name, value in told.items() if value is not None}
    assert evaluation.learned(tags) == ((first, last) if known else None)


@pytest.mark.filterwarnings("ignore:Operation with range")  # MLflow's own
def test_signature_without_outputs_is_none(tmp_path):
    """Logged by hand with the inputs alone: there is no signature that could be held against ours."""
    weather = pd.DataFrame([[0.0] * len(FEATURES), [1.0] * len(FEATURES)], columns=FEATURES)
    power = pd.DataFrame([[0.0] * len(TARGETS), [1.0] * len(TARGETS)], columns=TARGETS)
    whole = infer_signature(weather, power)
    options = {
        "serialization_format": "skops", "skops_trusted_types": loading.TRUSTED_TYPES,
        "pip_requirements": loading.requirements(loading.SKLEARN_REQUIREMENTS),
    }  # fmt: skip
    for name, signature, expected in (
        ("whole", whole, SIGNATURES[0]),
        ("half", ModelSignature(inputs=whole.inputs), None),
    ):
        folder = tmp_path / name
        mlflow.sklearn.save_model(LinearRegression().fit(weather, power), folder, signature=signature, **options)
        assert evaluation._signature(str(folder)) == expected
