"""The dashboard of another problem: one target, one input, other names, and no presets."""

from __future__ import annotations

import json
import subprocess
import sys

from workplace import ROOT

# In a process of its own: the modules read the problem when they are imported.
PROGRAM = """
import json, re
from dataclasses import replace

import pandas as pd

from workshop import problem

weather = next(each for each in problem.INPUTS if each.unit == "°C")
problem.INPUTS = (replace(weather, name="outdoor_temp", title="Outdoor temperature"),)
heat = replace(problem.TARGETS[0], name="heat_GW", title="Heat", colour="#D55E00", plants="boilers", by_day=False)
problem.TARGETS = (heat,)
problem.QUANTITIES = {each.name: each for each in (heat, *problem.INPUTS)}
problem.R2, problem.NIGHT, problem.PRESETS = {"heat_GW": "r2_heat"}, {}, {}

from dashboard import app, layout
from dashboard.follower import Follower, Snapshot
from dashboard.pages import PAGES
from pathlib import Path
from request_bodies import URL, body_of
from workshop.models.registry import Move, Production
from workshop.models.storage import LoadedModel

def predict(rows):
    return 20 - rows[["outdoor_temp"]].to_numpy()

def predict_with_band(rows):
    return predict(rows), predict(rows) - 1, predict(rows) + 1

hours = pd.date_range("2016-06-01", periods=600, freq="h", tz="UTC", unit="us")
frame = pd.DataFrame({"utc_timestamp": hours, "heat_GW": 12.0, "outdoor_temp": [5.0 + hour % 9 for hour in range(600)]})
model = LoadedModel("sklearn", predict, _predict_with_band=predict_with_band, coverage=0.8)
predicted, band = model.predict_with_band(frame)
production = Production("heat", "3", "a1", "models:/heat/3", "train", 0.9, None, None, "")
following = Follower(Path("germany.parquet"))
following.now = Snapshot(
    is_ready=True, production=production, model=model, frame=frame, predicted=predicted, band=band, data_stamp=(1, 1)
)
application = app.make_app(following)
client = application.server.test_client()
row = {"utc_timestamp": "2016-06-01T12:00:00Z", "outdoor_temp": 8.0}
print(json.dumps({
    "pages": {page.PATH: str(layout.whole_page(following.now, page.PATH).to_plotly_json()) for page in PAGES},
    "predicted": client.post("/predict", json={"rows": [row]}).get_json(),
    "refused": client.post("/predict", json=[]).get_json(),
    "statuses": [
        client.post(URL, json=body_of(application, output)).status_code
        for output, declared in application.callback_map.items() if "callback" in declared
    ],
}))
"""


def test_dashboard_takes_targets_and_inputs_from_the_problem():
    """Pages, callbacks and `/predict` name heat and its one input, and nothing of the sun and the wind."""
    paths = [str(ROOT / "4_pipeline"), str(ROOT / "tests")]
    program = f"import sys; sys.path[:0] = {paths!r}\n{PROGRAM}"
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    [row] = answers["predicted"]["rows"]
    assert {name: row[name] for name in ("heat_GW", "heat_GW_low", "heat_GW_high")} == {
        "heat_GW": 12.0, "heat_GW_low": 11.0, "heat_GW_high": 13.0,
    }  # fmt: skip
    assert "outdoor_temp" in answers["refused"]["expected"]
    assert set(answers["statuses"]) <= {200, 204}
    for path, words in (("/comparison", "Heat, mean predicted"), ("/what-if", "slider-outdoor_temp")):
        assert words in answers["pages"][path]
    for path, page in answers["pages"].items():
        text = page.replace("Solar and wind power", "").replace("wind_solar", "")
        for word in ("solar_GW", "wind_GW", "windspeed", "rad_diffuse"):
            assert word not in text, path
