"""Step 3: logging configured by a file that all programs share: `python logging_from_file.py [FILE]`."""

import logging
import logging.config
import sys
from pathlib import Path

import yaml

file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "logging.yaml"
try:
    logging.config.dictConfig(yaml.safe_load(file.read_text(encoding="utf-8")))
except FileNotFoundError:
    sys.exit(f"There is no file {file}. Choose a logging configuration: `python logging_from_file.py FILE`")

logger = logging.getLogger("experiment")
logger.info("training starts")
logger.warning("the loss does not fall")
