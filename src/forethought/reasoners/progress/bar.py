"""The loading bar in a terminal: text above, below it how much of the thought is over and what is left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from forethought.reasoners.progress.watching import Ending, Event

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model may write what would steer a terminal
_QUARTERS = (0.25, 0.5, 0.75)


@dataclass
class _Screen:
    """The last line while it grows, and the bar below it."""

    width: int
    line: str = ""

    def push(self, text: str) -> list[str]:
        """Take in text; gives the lines that are whole now."""
        *whole, self.line = (self.line + text).split("\n")
        while len(self.line) > self.width:
            whole.append(self.line[: self.width])
            self.line = self.line[self.width :]
        return whole

    def draw(self, event: Event | None) -> Group:
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=1.0, completed=event.fraction if event else 0.0, width=max(10, self.width // 3)),
            Text(status(event) if event else "reading the question"),
        )
        return Group(*([Text(self.line)] if self.line else []), row)


def show(stream: Iterator[Event | Ending], why: str, console: Console | None = None) -> Ending | None:
    """Show a thought as it comes; gives its ending, or None where the stream broke off.

    In a terminal the bar is live. Elsewhere the text goes to standard output as it comes, and a line at every quarter
    to standard error.

    Args:
        stream: of :meth:`Watcher.stream`.
        why: a sentence, shown first.
        console: where; by default standard output.
    """
    console = console or Console()
    return _live(stream, why, console) if console.is_terminal else _plain(stream, why, console)


def status(event: Event) -> str:
    """What stands beside the bar."""
    if event.closed:
        return f"100 %  thought over · {event.tokens} tokens · answering"
    pace = event.seconds / event.tokens
    return (
        f"{event.fraction:4.0%}  ≈ {event.eta_tokens:.0f} tokens left [{event.low:.0f}–{event.high:.0f}]"
        f" · {event.eta_tokens * pace:.1f} s · by {event.source}"
    )


def summary(ending: Ending) -> str:
    """What came of it, in a line."""
    thought = f"{ending.thinking_tokens} thinking tokens" + ("" if ending.ended else ", cut off")
    answer = f" · answer {ending.answer}" if ending.answer is not None else ""
    return f"{thought} · {ending.tokens} in all · {ending.seconds:.1f} s · {ending.why}{answer}"


def _live(stream: Iterator[Event | Ending], why: str, console: Console) -> Ending | None:
    console.print(Text(why, style="dim"))
    screen, last = _Screen(max(20, console.width - 1)), None
    with Live(screen.draw(None), console=console, transient=True, refresh_per_second=12) as live:
        for item in stream:
            if isinstance(item, Ending):
                live.console.print(Text(_CONTROL.sub("", screen.line)))
                live.console.print(Text(summary(item), style="bold"))
                return item
            last = item
            for line in screen.push(_CONTROL.sub("", item.text)):
                live.console.print(Text(line))
            live.update(screen.draw(last))
    return None


def _plain(stream: Iterator[Event | Ending], why: str, console: Console) -> Ending | None:
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    notes.print(Text(why))
    told = 0
    for item in stream:
        if isinstance(item, Ending):
            console.file.write("\n")
            console.file.flush()
            notes.print(Text(summary(item)))
            return item
        console.file.write(_CONTROL.sub("", item.text))
        console.file.flush()
        while told < len(_QUARTERS) and item.phase == "think" and item.fraction >= _QUARTERS[told]:
            told += 1
            if told == len(_QUARTERS) or item.fraction < _QUARTERS[told]:
                notes.print(Text(f"\n{status(item)}"))
    return None
