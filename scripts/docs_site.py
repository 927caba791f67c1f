"""What `mkdocs build` needs beyond its settings: the pages that the code writes.

Made here: every module by room, every command with its options, the keys of a recipe, and the fields of report.json.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "export" / "report" / "templates" / "report.schema.json"
ROOMS = ("common", "network", "explain", "prune", "export", "pipeline", "cli")
ROLE = re.compile(r":[a-z]+:`~?\.*([^`]+)`")


class PlainRoles(griffe.Extension):
    """Turns reStructuredText's roles in docstrings, such as ``:func:`name```, into code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that the code writes."""
    pages = {
        "commands": commands_page(),
        "recipe": recipe_page(),
        "report": report_page(json.loads(SCHEMA.read_text(encoding="utf-8"))),
    }
    for room in ROOMS:
        pages[room] = modules_page(room)
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def modules_page(room: str) -> str:
    """Every module of a room and of the packages in it, from their docstrings."""
    parts = [f"# secateur.{room}", _said_of(ROOT / room)]
    for path in sorted((ROOT / room).rglob("*.py"), key=lambda path: (path.parent, path.stem)):
        if path.stem != "__init__":
            name = path.relative_to(ROOT / room).with_suffix("").as_posix().replace("/", ".")
            parts.append(f"## {name}\n\n::: secateur.{room}.{name}")
        elif path.parent != ROOT / room:
            parts.append(f"## {path.parent.relative_to(ROOT / room).as_posix()}/\n\n{_said_of(path.parent)}")
    return "\n\n".join(parts) + "\n"


def _said_of(package: Path) -> str:
    """What a package says of itself."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    return ROLE.sub(r"`\1`", text)


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` gives them."""
    import typer.main

    from secateur.cli.commands import app

    group = typer.main.get_command(app)
    parts = ["# Commands", "`secateur COMMAND --help` prints the same."]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts += [f"## secateur {name}", _paragraphs(command.help or "")]
        rows = [(_option(one), _cell(getattr(one, "help", None) or "")) for one in command.params if one.name != "help"]
        if rows:
            parts.append(_table(("option", "what"), rows))
    return "\n\n".join(parts) + "\n"


def recipe_page() -> str:
    """Every key of a recipe with its default."""
    from secateur.pipeline.recipe.recipe import Recipe

    parts = [
        "# The recipe",
        "`--recipe FILE` reads these keys, options given beside it win, and every run writes the whole of what it went by as "
        "`recipe.toml`. A key without a default may be left out. A key that does not exist is an error.",
        "```toml\n" + Recipe().to_toml().strip() + "\n```",
    ]
    recipe = Recipe()
    for entry in fields(recipe):
        section = getattr(recipe, entry.name)
        if is_dataclass(section):
            where = f"{type(section).__module__}.{type(section).__name__}"
            parts += [f"## [{entry.name}]", f"::: {where}\n    options:\n      show_root_heading: false"]
    return "\n\n".join(parts) + "\n"


def report_page(schema: Mapping[str, Any]) -> str:
    """Every field of report.json with its type and meaning, from the schema that the package holds."""
    rows = [(f"`{path}`", kind, meaning) for path, kind, meaning in _fields(schema, schema, "")]
    return (
        "# report.json\n\nEvery run of `secateur prune-and-export` writes one; the schema lies in the package as "
        "`secateur/export/report/templates/report.schema.json`. `[]` stands for the items of a list, `*` "
        "for the keys of a mapping (batch sizes, class names, stages).\n\n"
        + _table(("field", "type", "what"), rows)
        + "\n"
    )


def _fields(schema: Mapping[str, Any], node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for name, value in node.get("properties", {}).items():
        yield from _field(schema, value, f"{path}.{name}" if path else name)
    if isinstance(others := node.get("additionalProperties"), dict):
        yield from _field(schema, others, f"{path}.*")
    if isinstance(items := node.get("items"), dict):
        yield from _field(schema, items, f"{path}[]")


def _field(schema: Mapping[str, Any], node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    if "$ref" in node:
        node = {**schema["$defs"][node["$ref"].rpartition("/")[2]], **node}
    kinds = node.get("type", "")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if "enum" in node:
        kind = " or ".join(f"`{json.dumps(value)}`" for value in node["enum"])
    if "const" in node:
        kind = f"`{json.dumps(node['const'])}`"
    yield path, kind, _cell(node.get("description", ""))
    yield from _fields(schema, node, path)


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _paragraphs(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, tuple("---" for _ in header), *map(tuple, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
