"""One description of a table, for terminals and for documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A heading, and a format string over a row's keys."""

    heading: str
    cell: str


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    """The cell's text; what does not apply, and so is NaN, is a dash."""
    text = column.cell.format(**row)
    return "–" if text.startswith("nan") else text


def rich_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table(*(column.heading for column in columns))
    for row in rows:
        table.add_row(*(_cell(column, row) for column in columns))
    return table


def markdown_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for a document."""
    lines = [
        "| " + " | ".join(column.heading for column in columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(_cell(column, row) for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def markdown(title: str, text: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """A document: title, text and the rows as a table."""
    return f"# {title}\n\n{text.strip()}\n\n{markdown_table(columns, rows)}"


def publish(
    title: str,
    text: str,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Print the rows, and write them and the document where files are given."""
    Console().print(rich_table(columns, rows))
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")
    if markdown_file:
        markdown_file.write_text(markdown(title, text, columns, rows))
