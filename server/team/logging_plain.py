"""Step 1: plain logging. Python shows warnings and errors only, without time and origin."""

import logging

logger = logging.getLogger("experiment")
logger.info("training starts")
logger.warning("the loss does not fall")
