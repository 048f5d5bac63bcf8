"""Sphinx over the pages of this folder: ``sphinx-build -W docs build/docs``."""

import recbole_llm

project = "recbole-llm"
copyright = "the recbole-llm developers"
version = release = recbole_llm.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"recbole-llm {version}"
exclude_patterns: list[str] = []
myst_heading_anchors = 3
myst_links_external_new_tab = True
# Links to files beside docs/ (examples, props) are for readers of the repository.
suppress_warnings = ["myst.xref_missing"]
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Large packages that signatures name and the pages do not need.
nitpicky = False
