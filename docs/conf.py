"""Sphinx configuration of the book: this repository's pages and executed notebooks. `make book` builds it."""

import re
from importlib.metadata import metadata
from pathlib import Path

import plotly

project = "From a messy notebook to a governed pipeline"
author = metadata("papermill-dask")["Author"]
html_theme = "furo"
html_title = project
html_css_files = ["book.css"]
html_static_path = ["book.css", str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")]
html_copy_source = html_show_sphinx = html_show_copyright = False

extensions = ["myst_nb", "sphinx_external_toc", "sphinx_copybutton", "sphinxcontrib.mermaid"]
extensions += ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
external_toc_path = "docs/_toc.yml"
external_toc_exclude_missing = True
exclude_patterns = ["**/.environment", "book"]  # chapter 3's environment; the built book
copybutton_selector = "div:not(.output):not(.highlight-text) > div.highlight > pre"

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
mermaid_height, mermaid_fullscreen = "auto", False
nb_execution_mode = "off"  # the pipeline and `make book` have already executed the notebooks

default_role = "code"
autodoc_member_order = "bysource"


def use_local_plotly(_app, _page, _template, context, _doctree):
    """Load plotly.js from this site instead of a CDN, so that figures work offline."""
    script = f'<script src="{context["pathto"]("_static/plotly.min.js", resource=True)}">'
    scripts = r'<script[^>]*src="https://cdn\.plot\.ly[^>]*>'
    loaders = r'<script type="module">import "https://cdn\.plot\.ly.*?</script>|<script src="https://cdnjs[^>]*MathJax[^>]*></script>'
    context["body"] = re.sub(loaders, "", re.sub(scripts, script, context.get("body", "")))


def setup(app):
    """Connect `use_local_plotly` to Sphinx."""
    app.connect("html-page-context", use_local_plotly)
