"""What the site has beside the Markdown files of docs/: pages that the code writes, files from
outside docs/ that pages link to, and a check that no page loads anything from elsewhere.

MkDocs calls what is named `on_...` (mkdocs.yml, `hooks`). A warning fails `make docs`.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import generated

ROOT = Path(__file__).parents[2]
EXAMPLES = "reference/examples.md"
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that stand for files beside docs/."""
_OUTSIDE = re.compile(r"\]\((?:\.\./)+([\w./-]+)(#[\w-]+)?\)")
_LOADS = re.compile(r"""(?:<script[^>]*\ssrc|<img[^>]*\ssrc|<link[^>]*\shref)=["']?(https?:)?//""")
_LOG = logging.getLogger("mkdocs.plugins.specrej")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is written at each build."""
    made = {
        "reference/cli.md": generated.command_page(),
        "reference/http.md": generated.bodies_page(),
        EXAMPLES: examples_page(),
    }
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        made[PLACES[name]] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turns links to files beside docs/, which a forge shows, into links to pages."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        inside = posixpath.normpath(posixpath.join(here, found[0][2:-1].partition("#")[0]))
        if not inside.startswith("../"):
            return found[0]
        place = PLACES.get(path, EXAMPLES)
        anchor = anchor or ("" if path in PLACES else f"#{anchor_of(path)}")
        return f"]({posixpath.relpath(place, here or '.')}{anchor})"

    return _OUTSIDE.sub(link, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Warns of a page that would ask another server for something."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if _LOADS.search(path.read_text(encoding="utf-8")):
            _LOG.warning("%s loads a file from another server", path.name)


def examples_page() -> str:
    """The files of examples/, and others that pages link to, as they stand."""
    lines = [
        "# Examples",
        "",
        "Files of the repository, as they stand. Tests run the programs.",
        "",
    ]
    files = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "contrib" / "specrej.service"]
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        code = path.read_text(encoding="utf-8").rstrip()
        kind = "python" if path.suffix == ".py" else "ini"
        lines += [f"## {name} {{ #{anchor_of(name)} }}", "", f"```{kind}", code, "```", ""]
    return "\n".join(lines)


def anchor_of(path: str) -> str:
    return re.sub(r"\W+", "-", path)
