"""Units: what a column may be given in, how it is converted, and which unit a wrong range speaks of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import Series

# value in our unit = value * first / second + third; written so that whole numbers come out to the last digit
POWER_GW = {"GW": (1, 1, 0), "MW": (1, 1000, 0), "kW": (1, 10**6, 0), "W": (1, 10**9, 0)}
SPEED = {"m/s": (1, 1, 0), "km/h": (1, 3.6, 0), "kn": (1852, 3600, 0), "mph": (0.44704, 1, 0)}
TEMPERATURE_C = {"C": (1, 1, 0), "K": (1, 1, -273.15), "F": (5, 9, -160 / 9)}
# What falls in an hour is the hour's mean times 3,600 s.
RADIATION = {
    "W/m2": (1, 1, 0), "Wh/m2": (1, 1, 0), "kW/m2": (1000, 1, 0), "kWh/m2": (1000, 1, 0),
    "J/m2": (1, 3600, 0), "kJ/m2": (1, 3.6, 0), "MJ/m2": (10**6, 3600, 0),
}  # fmt: skip
OF_COLUMN: dict[str, dict[str, tuple[float, float, float]]] = {
    "solar_GW": POWER_GW,
    "wind_GW": POWER_GW,
    "windspeed": SPEED,
    "temperature": TEMPERATURE_C,
    "rad_horizontal": RADIATION,
    "rad_diffuse": RADIATION,
}
FEW = 0.05  # share of values out of range up to which they are slips, and not another unit


def convert(values: Series, column: str, unit: str) -> Series:
    """Return ``values`` of ``unit`` in the unit of ``column`` (`schema.UNITS`)."""
    factor, divisor, offset = OF_COLUMN[column][unit]
    return values * factor / divisor + offset


def suspected(values: Series, column: str, least: float, most: float) -> str | None:
    """Return the unit that ``values``, which should be in that of ``column``, seem to be in; None if no other fits.

    Another unit is suspected when more than a few values (`FEW` of those that are not zero) are out of the range from
    ``least`` to ``most``, and as good as all in it once they are taken for values of that unit; the nearest such unit.
    """
    values = values[values.notna() & (values != 0)]
    out = (values < least) | (values > most)
    if not len(values) or out.mean() <= FEW:
        return None
    known = OF_COLUMN[column]
    nearest_first = sorted(known, key=lambda unit: abs(math.log(known[unit][0] / known[unit][1])))
    fitting = (unit for unit in nearest_first if convert(values, column, unit).between(least, most).mean() >= 1 - FEW)
    return next(fitting, None)
