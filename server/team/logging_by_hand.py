"""Step 2: logging configured by hand. Every program repeats these lines, so a change must be made in each program."""

import logging

handler = logging.FileHandler("experiment.log")
for each in (handler, logging.StreamHandler()):
    each.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.getLogger().addHandler(each)
logging.getLogger().setLevel(logging.INFO)

logger = logging.getLogger("experiment")
logger.info("training starts")
logger.warning("the loss does not fall")
