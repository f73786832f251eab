"""The problem: what is predicted from what. Everything else loops over these targets and inputs.

Values are means of the hour that begins at the time stamp. Wind speed is at 10 m, temperature at 2 m; radiation is on
the horizontal.
"""

from __future__ import annotations

from dataclasses import dataclass

EXPERIMENT = "predicting_wind_solar"
REGISTERED_MODEL = "wind_solar"
TITLE, SUBTITLE = "Solar and wind power", "Germany, hourly"  # of the dashboard

# Units of a quantity, ours first. A value in our unit is value * first / second + third, written so that whole numbers
# stay exact. The energy that falls in an hour is the hour's mean power times 3,600 s.
Units = dict[str, tuple[float, float, float]]
POWER: Units = {"GW": (1, 1, 0), "MW": (1, 1000, 0), "kW": (1, 10**6, 0), "W": (1, 10**9, 0)}
SPEED: Units = {"m/s": (1, 1, 0), "kn": (1852, 3600, 0), "mph": (0.44704, 1, 0), "km/h": (1, 3.6, 0)}
TEMPERATURE: Units = {"C": (1, 1, 0), "K": (1, 1, -273.15), "F": (5, 9, -160 / 9)}
RADIATION: Units = {
    "W/m2": (1, 1, 0), "Wh/m2": (1, 1, 0), "kJ/m2": (1, 3.6, 0), "kW/m2": (1000, 1, 0), "kWh/m2": (1000, 1, 0),
    "MJ/m2": (10**6, 3600, 0), "J/m2": (1, 3600, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Slider:
    """A slider of the dashboard, in the range of a country's mean: its ends, its step and its first value."""

    low: float
    high: float
    step: float
    first: float


@dataclass(frozen=True)
class Quantity:
    """A column of the processed table.

    ``possible`` is what a country's mean or sum can be: anything else is an error. A mean beyond ``usual`` is possible,
    but often another unit. ``units`` are those that an own file may use, ``unit`` is ours as people write it.
    """

    name: str
    title: str
    unit: str
    units: Units
    possible: tuple[float, float]
    usual: tuple[float, float]


@dataclass(frozen=True)
class Target(Quantity):
    """What is predicted, its colour in figures, and which plants its installed capacity counts.

    With ``by_day`` there is none of it while the sun is down: the gate has a rule for that, and the band counts the
    hours of daylight alone.
    """

    colour: str
    plants: str
    by_day: bool = False

    @property
    def key(self) -> str:
        """Its name without the unit, as in the names of scores and parameters: `solar`."""
        return self.name.rpartition("_")[0]


@dataclass(frozen=True)
class Input(Quantity):
    """What it is predicted from, in words, and its slider."""

    meaning: str
    slider: Slider


# The solar constant is 1,361 W/m2: https://doi.org/10.1029/2010GL045777. The usual means of power are wide, since
# countries differ: only a factor of 1,000 shows. Wind in km/h stays within what is possible, and its mean does not.
# Colours: Okabe and Ito's, which can be told apart with any kind of colour blindness: https://jfly.uni-koeln.de/color/
TARGETS = (
    Target("solar_GW", "Solar", "GW", POWER, (0, 200), (0.01, 100), "#E69F00", "solar plants", by_day=True),
    Target("wind_GW", "Wind", "GW", POWER, (0, 200), (0.01, 100), "#0072B2", "wind turbines"),
)
INPUTS = (
    Input(
        "windspeed", "Wind speed", "m/s", SPEED, (0, 60), (1, 10),
        meaning="wind speed at 10 m", slider=Slider(0, 16, 0.1, 5.0),
    ),
    Input(
        "temperature", "Temperature", "°C", TEMPERATURE, (-40, 50), (-10, 30),
        meaning="temperature at 2 m", slider=Slider(-20, 40, 0.5, 12.0),
    ),
    Input(
        "rad_horizontal", "Direct radiation", "W/m²", RADIATION, (0, 1400), (20, 300),
        meaning="direct radiation on the horizontal", slider=Slider(0, 850, 5, 250),
    ),
    Input(
        "rad_diffuse", "Diffuse radiation", "W/m²", RADIATION, (0, 1400), (20, 150),
        meaning="diffuse radiation", slider=Slider(0, 520, 5, 120),
    ),
)  # fmt: skip
QUANTITIES = {quantity.name: quantity for quantity in (*TARGETS, *INPUTS)}
# Scores on the held-out hours: R2 of all targets (the mean) and of each, errors in GW, power while the sun is down.
R2 = {target.name: f"r2_{target.key}" for target in TARGETS}
NIGHT = {target.name: f"night_{target.name}" for target in TARGETS if target.by_day}
METRICS = ("r2", *R2.values(), "mae_GW", "lowest_GW", *NIGHT.values())
# Of the sliders; hour (UTC) and day of the year are set as well.
PRESETS: dict[str, dict[str, float]] = {
    "Summer noon": {"windspeed": 3, "temperature": 26, "rad_horizontal": 650, "rad_diffuse": 180, "hour": 11},
    "Winter storm": {
        "windspeed": 13, "temperature": 6, "rad_horizontal": 5, "rad_diffuse": 40, "hour": 12, "day": 15
    },
    "Still night": {"windspeed": 1.5, "temperature": 8, "rad_horizontal": 0, "rad_diffuse": 0, "hour": 0, "day": 290},
}  # fmt: skip
