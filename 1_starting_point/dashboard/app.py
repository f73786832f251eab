# dashboard, run in this folder: python app.py, then open the address that it prints
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, dcc, html
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import r2_score
from werkzeug.serving import make_server

# same cleaning as in the report
if not Path("../germany.csv").exists():
    raise SystemExit("../germany.csv is missing: make_processed_data.ipynb writes it, run that notebook first")
df = pd.read_csv("../germany.csv", parse_dates=["utc_timestamp"])
df = df.drop_duplicates("utc_timestamp")
df = df.dropna()
df = df[df["solar_GW"] >= 0]
df = df[df["windspeed"] < 15]

# train at start, takes a moment
print("training ...")
features = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
model = RandomForestRegressor(n_estimators=20, n_jobs=-1)
model.fit(df[features], df[["solar_GW", "wind_GW"]])
pred = model.predict(df[features])
df["solar_pred"] = pred[:, 0]
df["wind_pred"] = pred[:, 1]
r2 = r2_score(df[["solar_GW", "wind_GW"]], pred)
print("R2", r2)

app = Dash(__name__, title="Solar and wind power")
app.layout = html.Div(
    [
        html.H2("Solar and wind power in Germany"),
        html.P(f"Random forest, R2 {r2:.3f}. The data is modelled, not measured: see raw_data/SOURCE.md."),
        dcc.DatePickerRange(
            id="days",
            min_date_allowed="2013-01-01",
            max_date_allowed="2016-12-31",
            start_date="2016-12-18",
            end_date="2016-12-31",
            display_format="YYYY-MM-DD",
        ),
        dcc.Graph(id="graph"),
        html.H3("What if"),
        html.Div(
            [
                html.Label(["wind speed (m/s) ", dcc.Input(id="windspeed", type="number", value=5)]),
                html.Label(["temperature (°C) ", dcc.Input(id="temperature", type="number", value=10)]),
                html.Label(["direct radiation (W/m2) ", dcc.Input(id="rad_horizontal", type="number", value=200)]),
                html.Label(["diffuse radiation (W/m2) ", dcc.Input(id="rad_diffuse", type="number", value=100)]),
            ],
            style={"display": "flex", "gap": "1.5em", "flexWrap": "wrap"},
        ),
        html.P(id="what-if", style={"fontSize": "1.3em"}),
    ],
    style={"fontFamily": "sans-serif", "maxWidth": "70em", "margin": "auto"},
)


@app.callback(Output("graph", "figure"), Input("days", "start_date"), Input("days", "end_date"))
def update_graph(start, end):
    d = df.set_index("utc_timestamp").sort_index().loc[start[:10] : end[:10]]
    d = d.resample("h").mean()  # so that gaps stay gaps
    fig = go.Figure()
    fig.add_scatter(x=d.index, y=d["solar_GW"], name="solar, measured", line={"color": "#E69F00"})
    fig.add_scatter(x=d.index, y=d["solar_pred"], name="solar, predicted", line={"color": "#E69F00", "dash": "dot"})
    fig.add_scatter(x=d.index, y=d["wind_GW"], name="wind, measured", line={"color": "#0072B2"})
    fig.add_scatter(x=d.index, y=d["wind_pred"], name="wind, predicted", line={"color": "#0072B2", "dash": "dot"})
    fig.update_layout(yaxis_title="generation (GW)", xaxis_title="UTC", template="plotly_white", height=420)
    return fig


@app.callback(
    Output("what-if", "children"),
    Input("windspeed", "value"),
    Input("temperature", "value"),
    Input("rad_horizontal", "value"),
    Input("rad_diffuse", "value"),
)
def update_what_if(windspeed, temperature, rad_horizontal, rad_diffuse):
    if None in (windspeed, temperature, rad_horizontal, rad_diffuse):
        return "Fill in all four."
    X = pd.DataFrame([[windspeed, temperature, rad_horizontal, rad_diffuse]], columns=features)
    solar, wind = model.predict(X)[0]
    return f"solar {solar:.1f} GW, wind {wind:.1f} GW"


if __name__ == "__main__":
    server = make_server("127.0.0.1", 0, app.server, threaded=True)  # 0: a port that is free
    print(f"open http://127.0.0.1:{server.port}, end with Ctrl-C", flush=True)
    server.serve_forever()
