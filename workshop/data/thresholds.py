"""All limits that the data is held against, in one place: what cannot be is an error, what is unusual a warning."""

from __future__ import annotations

Limits = tuple[float | None, float | None]

# -- cannot be: an error -------------------------------------------------------------------------------------------
# What is physically possible for a country's mean or sum; the solar constant is 1,361 W/m2.
RANGES: dict[str, tuple[float, float]] = {
    "solar_GW": (0, 200),
    "wind_GW": (0, 200),
    "windspeed": (0, 60),
    "temperature": (-40, 50),
    "rad_horizontal": (0, 1400),
    "rad_diffuse": (0, 1400),
}

# -- unusual: a warning --------------------------------------------------------------------------------------------
# A mean beyond these is possible, but often another unit: wind in km/h taken for m/s stays within its range. For power
# they are wide, since countries differ: a factor of 1,000 is all that shows.
USUAL_MEANS: dict[str, tuple[float, float]] = {
    "solar_GW": (0.01, 100),
    "wind_GW": (0.01, 100),
    "windspeed": (1, 10),
    "temperature": (-10, 30),
    "rad_horizontal": (20, 300),
    "rad_diffuse": (20, 150),
}
MONTH_HOURS = 24 * 28  # fewer say nothing of a mean, and nothing of what is usual

# Hours of a year that are left out, in percent, and the longest of its gaps. In 2013-2016 four hours in a thousand of
# the real data are missing, if that.
MOST_MISSING_PERCENT = 1.0
LONGEST_GAP_HOURS = 24
MOST_DOUBLED = 0  # rows: of two rows of one hour one is wrong, and only the publisher knows which

# From one year's mean to the next: capacity grows by less, and no weather changes so much. Only years that have nearly
# all their hours are compared, since half a year is another season.
MOST_CHANGE_PERCENT = 30.0
MOST_CHANGE_KELVIN = 3.0
WHOLE_YEAR_PERCENT = 90.0

# Far from the median of the same month and hour of the day, in standard deviations estimated by the median absolute
# deviation (times 1.4826, exact for a normal distribution). The customary 3.5 is for normal values (Iglewicz and
# Hoaglin, How to Detect and Handle Outliers, 1993); power and wind have long tails, and the sample's storms reach 11.
# At dawn the deviation is next to nothing, so at least this share of the span of 98 % of all values counts.
MOST_DEVIATIONS = 12.0
LEAST_DEVIATION = 0.1

# Far from the median of the hour and both its neighbours (a Hampel identifier: Davies and Gather, The Identification
# of Multiple Outliers, 1993), in units of what 99 % of the hours keep. A single wrong reading shows here; the sample's
# highest is 8.
MOST_SPIKE = 10.0

# The same value hour after hour is a sensor that froze, or a gap that was filled. Zero is allowed longer where the sky
# can be covered for days.
MOST_SAME_HOURS = 24
MOST_ZERO_HOURS: dict[str, int] = {"rad_horizontal": 24 * 14}

# The rank correlation (Spearman) of a year's wind power with wind speed, and of its solar power with radiation by day.
# In the sample it is above 0.9, in single months above 0.7, and 0.2 with the wind of another month. A year is compared
# with the median of the others, since plants may be far from where the weather is measured; a single year is not.
LEAST_FIT = 0.3
MOST_LESS_FIT = 0.3

# The sun is down when there is no radiation, nor in the hours beside: panels in the east wake before the mean does.
# More solar power than this share of the highest says that the power's clock is not the weather's.
DARK_W_M2 = 1.0
MOST_SOLAR_AT_NIGHT_PERCENT = 1.0
