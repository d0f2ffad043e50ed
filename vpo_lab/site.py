"""The course as static pages: notebooks with their outputs, README, results and guides, complete without a network.

Formulas become MathML, which browsers draw by themselves; pictures are inside the pages or beside them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from vpo_lab.course.notebooks import WAVES, notebook_folder
from vpo_lab.errors import LabError
from vpo_lab.files import atomic_folder, write_bytes

# The public address of the repository: badges, install cells and links are built from it (`address`).
REPOSITORY = "OWNER/vpo-lab"

NAMES = [name for wave in WAVES for name in wave]
# docs/*.md keep their names.
PAGES = {"README.md": "index.html", "results/README.md": "results.html", "figures/README.md": "figures.html"}
SETS = '<div class="vpo-sets"'  # what a page without a kernel shows of the widget
EXPLORER = (
    '<p>With sliders, on its own page: <a href="explorer.html">explorer</a></p>\n'
    '<iframe src="explorer.html" title="explorer" loading="lazy"></iframe>\n'
)
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #f4f4f2; --line: #d8d8d4; --link: #0060a8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #17181a; --soft: #222427; --line: #3a3d41; --link: #6cb6ff }
  .highlight, .highlight * { color: var(--ink) !important } .highlight .c1 { opacity: .65 }
}
body { margin: 0 auto; max-width: 56rem; padding: 1rem 1.2rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif }
nav { display: flex; flex-wrap: wrap; font-size: .9rem; border-bottom: 1px solid var(--line); padding-bottom: .6rem }
nav a { margin-right: .9rem; white-space: nowrap } nav a[aria-current] { font-weight: bold; text-decoration: none }
a { color: var(--link) } img { max-width: 100%; background: #fff } h1, h2, h3 { line-height: 1.25 }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: .6rem .8rem;
  overflow-x: auto; font-size: .85rem; line-height: 1.45 }
code { font-size: .9em } :not(pre) > code { background: var(--soft); padding: .05em .25em; border-radius: 3px }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .92rem }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top }
math[display="block"] { margin: .8rem 0; font-size: 1.1rem } math { font-size: 1.05em }
.output_area pre { border-style: dashed; background: none } .anchor-link, .prompt { display: none }
iframe { width: 100%; height: 46rem; border: 1px solid var(--line); border-radius: 4px }
details { border: 1px solid var(--line); border-radius: 4px; padding: .3rem .8rem; margin: .8rem 0 }
"""


def address(notebooks: Path | None = None) -> list[Path]:
    """Write REPOSITORY into the badges, links and install cells of all notebooks; returns the changed files."""
    changed = []
    for path in sorted((notebooks or notebook_folder()).glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        if (new := addressed(text)) != text:
            write_bytes(path, new.encode())
            changed.append(path)
    return changed


def addressed(text: str) -> str:
    """The text with every address of this repository replaced by that of REPOSITORY."""
    return re.sub(r"(github(?:\.com)?/)[\w.-]+/vpo-lab\b", rf"\g<1>{REPOSITORY}", text)


def build_site(out: Path) -> list[Path]:
    """Write all pages into the folder `out`, which appears whole or not at all; returns their paths.

    Raises LabError if a package of the `dev` extra is missing, or `out` is a folder of something else.
    """
    out, root = Path(out), notebook_folder().parent
    if out.exists() and any(out.iterdir()) and not (out / "index.html").exists():
        raise LabError(f"{out} holds other files: choose an empty folder for the site")
    try:
        render = _markdown()
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise LabError(f"the site needs the package {error.name!r}: pip install -e '.[dev]'") from error
    sources = {root / source: target for source, target in PAGES.items()}
    sources |= {path: f"{path.stem}.html" for path in sorted((root / "docs").glob("*.md"))}
    targets = {source.relative_to(root).as_posix(): target for source, target in sources.items()}
    targets |= {f"notebooks/{name}.ipynb": f"{name}.html" for name in NAMES}
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": render})
    with atomic_folder(out) as folder:
        for source, target in sources.items():
            body = render(source.read_text(encoding="utf-8"))
            _write(folder / target, _relink(body, source.relative_to(root).parent, targets))
        for name in NAMES:
            body, _ = exporter.from_filename(str(root / "notebooks" / f"{name}.ipynb"))
            body = _relink(body, Path("notebooks"), targets)
            # The explorer shows what the last notebook's widget does.
            body = body.replace(SETS, EXPLORER + SETS, 1) if name == NAMES[-1] else body
            _write(folder / f"{name}.html", body)
        shutil.copytree(root / "figures", folder / "figures")
        shutil.copy(root / "docs" / "explorer.html", folder / "explorer.html")
    return sorted(out.glob("*.html"))


def _markdown():
    """A function from Markdown with $formulas$ to HTML with MathML."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt

    def formula(state, silent: bool) -> bool:
        match = re.compile(r"\$\$(.+?)\$\$|\$([^$\s](?:[^$]*[^$\s])?)\$(?!\d)", re.DOTALL).match(state.src, state.pos)
        if not match:
            return False
        if not silent:
            block = match[1] is not None
            token = state.push("html_inline", "", 0)
            token.content = convert((match[1] or match[2]).strip(), display="block" if block else "inline")
        state.pos = match.end()
        return True

    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    parser.inline.ruler.before("escape", "formula", formula)
    return parser.render


def _relink(body: str, folder: Path, targets: dict[str, str]) -> str:
    """Links between files of the repository become links between pages; pictures lie in figures/."""

    def link(match: re.Match) -> str:
        before, url, after = match.groups()
        path, hash_, part = url.partition("#")
        if not path or "://" in path or path.startswith("data:"):
            return match[0]
        parts: list[str] = []
        for piece in (folder / path).parts:
            parts = parts[:-1] if piece == ".." else [*parts, piece]
        inside = "/".join(parts)
        if inside.startswith("figures/") or inside == "docs/explorer.html":
            new = inside.removeprefix("docs/")
        else:
            new = targets.get(inside) or f"https://github.com/{REPOSITORY}/blob/main/{inside}"
        return f"{before}{new}{hash_}{part}{after}"

    # A picture from elsewhere (a badge) would be missing offline: its text stands in.
    body = re.sub(r'<img(?=[^>]*src="https?:)[^>]*alt="([^"]*)"[^>]*>', r"\1", body)
    return re.sub(r'((?:href|src)=")([^"]+)(")', link, body)


def _write(path: Path, body: str) -> None:
    from pygments.formatters import HtmlFormatter

    pages = {"index.html": "VPO Lab", **{f"{name}.html": name.replace("_", " ") for name in NAMES}}
    pages |= {f"{name}.html": name for name in ("explorer", "results", "figures", "glossary")}
    here = ' aria-current="page"'
    links = "".join(f'<a href="{to}"{here if to == path.name else ""}>{name}</a>' for to, name in pages.items())
    title = pages.get(path.name, path.stem.replace("-", " "))
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    write_bytes(
        path,
        (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{style}</style></head>\n<body><nav>{links}</nav>\n<main>{body}</main></body></html>\n"
        ).encode(),
    )
