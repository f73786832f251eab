"""What is predicted from what. The only module that names solar, wind or weather.

Wind speed is at 10 m, temperature at 2 m; radiation is on a horizontal plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from forecast.terms.quantities import Driver, Input, Slider, Target, YearEnds

if TYPE_CHECKING:
    from pandas import DataFrame, Series

EXPERIMENT = "predicting_wind_solar"
REGISTERED_MODEL = "wind_solar"
TITLE, REGION = "Solar and wind power", "Germany"  # shown in the dashboard and the report
STEP = "h"  # row frequency (pandas): 15min, 30min, h or another divisor of a day, or D for days
ZONE = "Europe/Berlin"  # the region's time zone; daily steps start at its midnight
MIDDLE = (51.0, 10.4)  # latitude and longitude (degrees) for which the sun's position is computed

# Radiation is limited by the solar constant, 1,361 W/m2: https://doi.org/10.1029/2010GL045777. Ranges of mean power
# suit small and large countries, but reveal a factor of 1,000. A wind speed in km/h is within `possible`, but its mean
# is outside `usual_mean`. Okabe and Ito's colours suit every kind of colour blindness: https://jfly.uni-koeln.de/color/
TARGETS = (
    Target(
        "solar_GW", "Solar", "GW", possible=(0, 200), usual_mean=(0.01, 100), opsd="DE_solar_generation_actual",
        key="solar", words="solar power", colour="#E69F00", plants="solar plants", by_day=True,
        # The diffuse share in the brightest hours is 0.27 to 0.29 in the sample, 0.5 in its darkest month, 0.7 if the
        # columns are swapped. Its lag is -0.1 to 0.0 h in the sample, and 1 h if one file's times are 1 h off.
        driver=Driver(
            "light", ("rad_horizontal", "rad_diffuse"), "W/m²", alike=(20, 0.15), lag_hours=(-0.5, 0.5),
            top_share=(0, 0.6),
        ),
    ),
    Target(
        "wind_GW", "Wind", "GW", possible=(0, 200), usual_mean=(0.01, 100), opsd="DE_wind_generation_actual",
        key="wind", words="wind power", colour="#0072B2", plants="wind turbines",
        # Half the maximum power is reached at 4.7 to 4.8 m/s in the sample, lower in forests and higher at sea; at 9 if
        # knots are read as m/s, at 2.5 vice versa. The lag is -0.1 to 0.1 h in the sample; fronts take hours to pass.
        driver=Driver("wind speed", ("windspeed",), "m/s", alike=(0.25, 0), at_half=(3, 8), lag_hours=(-3, 3)),
    ),
)  # fmt: skip
INPUTS = (
    Input(
        "windspeed", "Wind speed", "m/s", possible=(0, 60), usual_mean=(1, 10), opsd="DE_windspeed_10m",
        meaning="wind speed at 10 m", slider=Slider(0, 16, 0.1, 5.0),
    ),
    Input(
        "temperature", "Temperature", "°C", possible=(-40, 50), usual_mean=(-10, 30), opsd="DE_temperature",
        meaning="temperature at 2 m", slider=Slider(-20, 40, 0.5, 12.0),
    ),
    Input(
        "rad_horizontal", "Direct radiation", "W/m²", possible=(0, 1400), usual_mean=(20, 300),
        opsd="DE_radiation_direct_horizontal", zero_hours=24 * 14,  # under clouds
        meaning="direct horizontal radiation", slider=Slider(0, 850, 5, 250),
    ),
    Input(
        "rad_diffuse", "Diffuse radiation", "W/m²", possible=(0, 1400), usual_mean=(20, 150),
        opsd="DE_radiation_diffuse_horizontal",
        meaning="diffuse radiation", slider=Slider(0, 520, 5, 120),
    ),
)  # fmt: skip

# Wind speed at 105 m, the typical hub height in 2013-2016, from the speed at 10 m by the logarithmic profile ln(z/z0)
# with the roughness length z0 = 0.1 m of farmland (Hau, Wind Turbines, 3rd edition, chapter 13).
HUB_BY_MEASURED = math.log(105 / 0.1) / math.log(10 / 0.1)
COMPUTED: dict[str, Callable[[DataFrame], Series]] = {
    "hub_windspeed": lambda hours: hours["windspeed"] * HUB_BY_MEASURED,
}
# The features of the models, each computed from its row alone: inputs, the columns of COMPUTED, and `sun_elevation` and
# `sun_azimuth` (degrees above the horizon; clockwise from north), which represent hour and season. A daytime target
# (`by_day`) needs `sun_elevation`.
DERIVED = ["hub_windspeed", "temperature", "rad_horizontal", "rad_diffuse", "sun_elevation", "sun_azimuth"]

# Installed capacity by which the targets are divided, GW on 31 December, rounded to 0.1; {} for none. Other statistics
# differ by up to 1 GW, depending on their scope and reporting date. wind, on land and at sea: 2012 Deutsche WindGuard,
# press release of 30 January 2013 ("rund 31,3 GW"); 2013 Fraunhofer IWES, Windenergie Report Deutschland 2013 (33,658 +
# 521 MW); 2014 GWEC, as reported by Renewables Now in July 2015 (39.17 GW); 2015 and 2016 Deutsche WindGuard, as
# reported by Strom-Report (44,947 and 50,018 MW). solar, subsidised plants: Bundesnetzagentur, as reported by PHOTON:
# 2014 (38.23 GW), 2015 (39.69 GW), 2016 (41.22 GW); 2012 and 2013 are computed from 2014 by subtracting the additions
# (1.89 GW in 2014, 3.3 GW in 2013).
CAPACITY: YearEnds = {
    "solar_GW": {"2012": 33.0, "2013": 36.3, "2014": 38.2, "2015": 39.7, "2016": 41.2},
    "wind_GW": {"2012": 31.3, "2013": 34.2, "2014": 39.2, "2015": 44.9, "2016": 50.0},
}

# Slider values: `hour` is in UTC, `day` is the day of the year; `date` ("2016-05-08") sets both day and year.
PRESETS: dict[str, dict[str, float | str]] = {
    "Summer noon": {"windspeed": 3, "temperature": 26, "rad_horizontal": 650, "rad_diffuse": 180, "hour": 11},
    "Winter storm": {
        "windspeed": 13, "temperature": 6, "rad_horizontal": 5, "rad_diffuse": 40, "hour": 12, "day": 15
    },
    "Still night": {"windspeed": 1.5, "temperature": 8, "rad_horizontal": 0, "rad_diffuse": 0, "hour": 0, "day": 290},
}  # fmt: skip
