"""Makes one HTML file of an executed notebook, to be read in MLflow's artifact view and without a network."""

from __future__ import annotations

import base64
import functools
import json
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.exporters import HTMLExporter
from traitlets.config import Config

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


@functools.cache
def _packed_library() -> tuple[str, bytes, Any]:
    """Return plotly's library, compressed: what is encoded, the bytes that are not yet, and the compressor after it."""
    import plotly

    compressor = zlib.compressobj(9)
    # What plotly.offline.get_plotlyjs() returns, without the import of all that draws figures.
    script = compressor.compress((files(plotly) / "package_data/plotly.min.js").read_bytes())
    cut = len(script) // 3 * 3  # three bytes are four characters
    return base64.b64encode(script[:cut]).decode(), script[cut:], compressor


def convert(notebook: dict[str, Any], name: str) -> str:
    """Return a notebook as an HTML page with its figures.

    The frame in which MLflow shows the page can load no shared copy of plotly's library. The library is compressed:
    2.0 MB in place of 4.9.
    """
    node, figures = nbformat.from_dict(notebook), []
    for data in (output.get("data", {}) for cell in node.cells for output in cell.get("outputs", [])):
        data.pop(WIDGET, None)  # needs a kernel; its text is shown
        if PLOTLY in data:
            figures.append(data.pop(PLOTLY))
            data["text/html"] = '<div class="plotly-figure"></div>'
    resources: dict[str, Any] = {"metadata": {"name": name}}
    if figures:
        begin, rest, compressor = _packed_library()
        compressor = compressor.copy()
        rest += compressor.compress(f"\nconst figures = {json.dumps(figures)}".encode()) + compressor.flush()
        resources["packed"] = begin + base64.b64encode(rest).decode()
    return str(_exporter().from_notebook_node(node, resources)[0])


@functools.cache
def _exporter() -> HTMLExporter:
    """Return the exporter, which compiles its templates once."""
    template, style = Path(__file__).with_name("page.html.j2"), {"style": "default"}
    return HTMLExporter(template_file=str(template), config=Config(CSSHTMLHeaderPreprocessor=style))
