"""evidence.html: one self-contained page on kernels and images."""

import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

from ...common.files import write_text
from .data import PageContent, page_data

EVIDENCE_PAGE = "evidence.html"
_SCRIPTS, _STYLE = ("evidence_drawing.js", "evidence.js"), "evidence.css"


def write_evidence_page(content: PageContent, path: Path) -> Path:
    """Write the page atomically."""
    write_text(path, evidence_html(content))
    return path


def evidence_html(content: PageContent) -> str:
    """The page; text from the user's data is escaped in the markup and in the script."""
    from markupsafe import Markup

    return str(
        _template().render(
            model=content.model,
            ranking=content.kernels.ranking.method if content.kernels and content.kernels.ranking else "",
            notes=content.notes,
            data=Markup(json_in_html(page_data(content))),
            style=Markup(_text(_STYLE)),
            script=Markup("\n".join(_text(name) for name in _SCRIPTS)),
        )
    )


def json_in_html(values: Any) -> str:
    """JSON that is safe in a ``<script>`` element: without ``<`` and without the line separators that JavaScript would end a
    line at.
    """
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("static", name).read_text(encoding="utf-8")


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader(__package__, "static")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("evidence.html.jinja")
