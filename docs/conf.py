"""Sphinx configuration. Needs the extra ``docs``, no Django settings, and no network."""

from __future__ import annotations

from durable_flows import __version__

project = "durable_flows"
author = "durable_flows contributors"
copyright = "durable_flows contributors"
release = version = __version__

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "durable_flows"
