"""The course as pages for a browser (`make site`): Sphinx with MyST-NB, complete without a network.

The source folder is the repository, so that the links between its files are links between the pages.
"""

import os
import sys
from pathlib import Path, PurePosixPath

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import download_reference

sys.path.insert(0, str(Path(__file__).parents[1]))  # the reference is that of this checkout
project = "VPO Lab"
html_title, html_theme = project, "furo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "notebooks/*.ipynb", "figures/README.md", "results/*.md", "results/*.ipynb"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

nb_execution_mode = "off"  # the pages show what is committed
nb_ipywidgets_js: dict = {}  # a widget's script would come from a network; a static table stands in its place
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
autodoc_typehints, autodoc_member_order = "none", "bysource"
default_role = "code"
html_static_path, html_css_files = ["_static"], ["course.css"]
html_extra_path = ["explorer.html"]
html_math_renderer = "mathml"
html_copy_source = html_show_sphinx = html_show_copyright = False


def formula(display):
    """Write a formula as MathML, which browsers draw by themselves."""

    def visit(writer, node):
        writer.body.append(convert(node.astext(), display="block" if display else "inline"))
        raise nodes.SkipNode

    return visit, None


def stay_here(app, doctree, docname):
    """Put text in the place of pictures from elsewhere (badges), and link the explorer's page instead of its file.

    In a notebook its picture becomes the page itself.
    """
    for picture in list(doctree.findall(nodes.image)):
        if "://" in picture["uri"]:
            picture.replace_self(nodes.Text(picture.get("alt", "")))
    for link in list(doctree.findall(download_reference)):
        if PurePosixPath(link["reftarget"]).name == "explorer.html":
            address = os.path.relpath("explorer.html", PurePosixPath(docname).parent)
            live = docname.startswith("notebooks/") and any(link.findall(nodes.image))
            frame = f'<iframe class="explorer" src="{address}" title="The explorer" loading="lazy"></iframe>'
            page = nodes.raw("", frame, format="html")
            link.replace_self(page if live else nodes.reference("", "", *link.children, refuri=address))


def land(app, error):
    """Let the folder's own address lead to the first page."""
    with open(f"{app.outdir}/index.html", "w", encoding="utf-8") as page:
        page.write(
            f'<!doctype html><title>{project}</title><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        )


def setup(app):
    app.add_html_math_renderer("mathml", formula(display=False), formula(display=True))
    app.connect("doctree-resolved", stay_here)
    app.connect("build-finished", land)
