"""The documentation site: `make docs` builds it into docs/_build/html, offline, from this folder and conf/."""

import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import reference

project = "sweetspot"
author = "the authors of sweetspot"
extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_allow_digits = False
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
html_theme = "furo"
html_title = "sweetspot"
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"  # of docutils: no network, no JavaScript, and browsers draw it
templates_path: list[str] = []
CONF = Path(__file__).parent.parent / "conf"


def inline(writer: Any, node: nodes.math) -> None:
    """An equation in a line, as MathML."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    """An equation of its own, as MathML."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def write_reference(app: Sphinx) -> None:
    """The configuration reference, before its pages are read."""
    reference.write(CONF, Path(app.srcdir) / "configuration")


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls: equations as MathML, and the reference."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.connect("builder-inited", write_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
