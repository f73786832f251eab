"""The book: the pages of this repository and its executed notebooks, as one site. `make book` builds it."""

from importlib.metadata import metadata

project = "From a messy notebook to a governed pipeline"
author = metadata("papermill-dask")["Author"]
html_theme = "furo"
html_title = project
html_static_path = html_css_files = ["book.css"]
html_copy_source = html_show_sphinx = html_show_copyright = False

extensions = ["myst_nb", "sphinx_external_toc", "sphinx_copybutton", "sphinxcontrib.mermaid", "sphinx.ext.autodoc"]
external_toc_path = "docs/_toc.yml"
external_toc_exclude_missing = True
exclude_patterns = ["**/.environment", "book"]  # installed by a notebook of chapter 3; built
copybutton_selector = "div:not(.output):not(.highlight-text) > div.highlight > pre"

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]
nb_execution_mode = "off"  # the notebooks were executed in their order, by the pipeline or by `make book`

default_role = "code"
autodoc_member_order = "bysource"
