# weekly report, run in this folder: python make_report.py
import base64
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import mean_absolute_error, r2_score

# same cleaning as in the notebooks
if not Path("../germany.csv").exists():
    raise SystemExit("../germany.csv is missing: make_processed_data.ipynb writes it, run that notebook first")
df = pd.read_csv("../germany.csv", parse_dates=["utc_timestamp"])
df = df.drop_duplicates("utc_timestamp")
df = df.dropna()
df = df[df["solar_GW"] >= 0]
df = df[df["windspeed"] < 20]

# the model of model_rf.ipynb, or nearly
features = ["windspeed", "temperature", "rad_horizontal", "rad_diffuse"]
model = RandomForestRegressor(n_estimators=30, max_depth=20, n_jobs=-1)
model.fit(df[features], df[["solar_GW", "wind_GW"]])

week = df[df["utc_timestamp"] > df["utc_timestamp"].max() - pd.Timedelta(hours=168)].copy()
pred = model.predict(week[features])
week["solar_pred"] = pred[:, 0]
week["wind_pred"] = pred[:, 1]
first, last = week["utc_timestamp"].min(), week["utc_timestamp"].max()
print("report for", first.date(), "to", last.date())


def png(fig):
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()


# figure 1: hours
hours = week.set_index("utc_timestamp").resample("h").mean()  # so that gaps stay gaps
fig1, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True)
axes[0].plot(hours.index, hours["solar_GW"], color="#E69F00", label="measured")
axes[0].plot(hours.index, hours["solar_pred"], "k--", linewidth=1, label="predicted")
axes[0].set_ylabel("solar generation (GW)")
axes[0].legend()
axes[1].plot(hours.index, hours["wind_GW"], color="#0072B2", label="measured")
axes[1].plot(hours.index, hours["wind_pred"], "k--", linewidth=1, label="predicted")
axes[1].set_ylabel("wind generation (GW)")
axes[1].legend()
axes[0].set_title("Measured and predicted (modelled data)")

# figure 2: days
days = week.groupby(week["utc_timestamp"].dt.strftime("%a %d %b"), sort=False)[["solar_GW", "wind_GW"]].sum()
ax = days.plot.bar(stacked=True, figsize=(10, 4), color=["#E69F00", "#0072B2"], edgecolor="black", rot=0)
ax.set_xlabel("")
ax.set_ylabel("energy of the day (GWh)")
ax.set_title("Energy by day (modelled data)")
ax.legend(["solar", "wind"])
fig2 = ax.figure

# table
rows = ""
for name in ["solar", "wind"]:
    r2 = r2_score(week[name + "_GW"], week[name + "_pred"])
    mae = mean_absolute_error(week[name + "_GW"], week[name + "_pred"])
    energy = week[name + "_GW"].sum()
    print(name, "R2", round(r2, 3), "MAE", round(mae, 3), "GW")
    rows += f"<tr><th>{name}</th><td>{energy:,.0f}</td><td>{week[name + '_GW'].max():.1f}</td><td>{mae:.2f}</td><td>{r2:.3f}</td></tr>"

html = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Weekly report</title>
<style>
body {{ font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #999; padding: 0.3em 0.8em; text-align: right; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>Weekly report: solar and wind power in Germany</h1>
<p>{first:%d %B %Y} to {last:%d %B %Y}, {len(week)} hours. Model: random forest.
The data is modelled (raw_data/SOURCE.md); it says nothing about the real generation of these days.</p>
<table>
<tr><th></th><th>energy (GWh)</th><th>highest (GW)</th><th>mean absolute error (GW)</th><th>R2</th></tr>
{rows}
</table>
<img alt="Measured and predicted solar and wind generation by hour, in GW" src="data:image/png;base64,{png(fig1)}">
<img alt="Solar and wind energy by day, in GWh" src="data:image/png;base64,{png(fig2)}">
</body>
</html>
"""
with open("report.html", "w", encoding="utf-8") as f:
    f.write(html)
print("written: report.html")
