"""Step 1: plain logging. By default Python shows only warnings and errors, without time or origin."""

import logging

logger = logging.getLogger("experiment")
logger.info("training starts")
logger.warning("the loss does not fall")
