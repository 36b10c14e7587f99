"""What every benchmark prints and keeps, and the page made of it: docs/results/speed.md, never edited by hand.

python benchmarks/report.py FILE.json … --out docs/results/speed.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from forethought.atomic import atomic_file

REPOSITORY = Path(__file__).resolve().parents[1]
Cell = str | int | float


@dataclass
class Table:
    """Rows of text and numbers; the first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in [self.columns, *self.rows]
        ]
        return "\n".join([self.caption, *("  " + line for line in lines)])

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join([f"{self.caption}\n", *("| " + " | ".join(line) + " |" for line in lines)])


@dataclass
class Result:
    """What one benchmark found, and all that it refers to; tables are printed as they come."""

    title: str
    threads: int
    tables: list[Table] = field(default_factory=list)

    def table(self, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Add and print a table."""
        self.tables.append(Table(caption, list(columns), [[_readable(cell) for cell in row] for row in rows]))
        print(self.tables[-1].text() + "\n", flush=True)

    def save(self, path: str | None) -> None:
        """Write as JSON what was found, when, where and by which command; nothing where there is no path."""
        if path is not None:
            with atomic_file(path) as scratch:
                scratch.write_text(json.dumps({**asdict(self), **circumstances()}, indent=2, ensure_ascii=False))


def _readable(cell: Cell) -> str:
    if isinstance(cell, float):
        digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2
        return f"{cell:,.{digits}f}" if abs(cell) >= 0.1 else f"{cell:.2g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def circumstances() -> dict[str, str | int]:
    """Command, commit, date, processor and versions of this process."""
    processor, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").is_file():
        facts = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        processor, flags = facts.get("model name", processor), facts.get("flags", "")
    narrow = [name.upper() for name in ("avx512_bf16", "amx_bf16") if name in flags.split()]
    return {
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], REPOSITORY), *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": ", ".join([processor, *narrow]),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parts = [
        "# Speed\n\nWritten by `benchmarks/report.py` from what each command below measured. Every ratio stands "
        "against a reference measured in the same run; a `+` after the commit means uncommitted changes."
    ]
    for file in args.files:
        found = json.loads(file.read_text())
        parts.append(
            f"## {found['title']}\n\n`{found['command']}`, commit {found['commit']}, {found['date']}: "
            f"{found['processor']}, {found['threads']} of {found['cores']} cores, "
            f"Python {found['python']}, torch {found['torch']}."
        )
        parts += [Table(**table).markdown() for table in found["tables"]]
    with atomic_file(args.out) as scratch:
        scratch.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
