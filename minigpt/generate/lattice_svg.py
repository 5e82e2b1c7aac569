"""A beam search as a picture: one column a step, one line from each token to the one before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from minigpt.atomic import replace_text
from minigpt.cli.one_line import fitting_end, visible, width
from minigpt.sampler.events import BeamExtension
from minigpt.sampler.lattice import Lattice

CHARACTER, ROW, GAP, MARGIN = 8.0, 26.0, 44.0, 16.0  # pixels: a character's width, a line's height, ...
LABEL = 24  # columns; a longer text shows its end
STYLE = """\
text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #667 }
path { fill: none; stroke: #bbc; stroke-width: 1 }
.best { fill: #036; font-weight: bold }
path.best { fill: none; stroke: #06c; stroke-width: 2.5 }
"""

TokenString = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Node:
    """One token of one beam: its place, its text, and the node that it grew out of."""

    column: int
    row: int
    label: str
    score: float
    finish_reason: str
    parent: Node | None


def draw(lattice: Lattice, path: Path, token_string: TokenString) -> None:
    """Writes a trace as an SVG file, the prompts one below the other."""
    replace_text(path, svg(lattice, token_string))


def svg(lattice: Lattice, token_string: TokenString) -> str:
    """A trace as the text of an SVG file.

    Args:
        lattice: what the beams did.
        token_string: the text of a token.

    >>> lattice = Lattice([[5]], [[[BeamExtension(0, 7, -0.5, "eos"), BeamExtension(0, 9, -1.5, "")]]])
    >>> picture = svg(lattice, str)
    >>> picture.startswith("<svg "), picture.count("<path"), "7 [eos]" in picture
    (True, 2, True)
    """
    parts: list[str] = []
    top, right = MARGIN, 0.0
    for prompt, steps in zip(lattice.prompts, lattice.steps, strict=True):
        prompt_label = fitting_end(visible("".join(map(token_string, prompt))), LABEL)
        nodes = _nodes(steps, prompt_label, token_string)
        lefts = _columns(nodes)
        best = set(_path(_best(nodes)))
        for node in sorted(nodes, key=lambda node: node in best):  # the best path above the others
            parts += _drawn(node, lefts, top, node in best)
        top += ROW * (1 + max(node.row for node in nodes)) + ROW
        right = max(right, lefts[-1])
    size = f'width="{right + MARGIN:.0f}" height="{top:.0f}"'
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>'
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _nodes(steps: Sequence[Sequence[BeamExtension]], prompt: str, token_string: TokenString) -> list[Node]:
    """All nodes, from the prompt's on; each step's in the order of its beams."""
    nodes = [Node(0, 0, prompt, 0.0, "", None)]
    live = nodes[:]
    for column, step in enumerate(steps, start=1):
        grown = [
            Node(column, row, _label(beam, token_string), beam.score, beam.finish_reason, live[beam.parent])
            for row, beam in enumerate(step)
        ]
        nodes += grown
        live = [node for node in grown if not node.finish_reason]
    return nodes


def _label(beam: BeamExtension, token_string: TokenString) -> str:
    text = visible(token_string(beam.token)).replace(" ", "␣")
    return fitting_end(f"{text} [{beam.finish_reason}]" if beam.finish_reason else text, LABEL)


def _best(nodes: Sequence[Node]) -> Node:
    """The end of the best text: the finished one with the highest score, or else the first beam that goes on."""
    finished = [node for node in nodes if node.finish_reason]
    last = [node for node in nodes if node.column == nodes[-1].column]
    return max(finished, key=lambda node: node.score) if finished else last[0]


def _path(node: Node | None) -> Iterator[Node]:
    """A node, and all before it."""
    while node is not None:
        yield node
        node = node.parent


def _columns(nodes: Sequence[Node]) -> list[float]:
    """Where each column begins, in pixels, and where the last one ends."""
    widths = [0.0] * (1 + nodes[-1].column)
    for node in nodes:
        widths[node.column] = max(widths[node.column], CHARACTER * width(node.label))
    lefts = [MARGIN]
    for size in widths:
        lefts.append(lefts[-1] + size + GAP)
    return lefts


def _xml(text: str) -> str:
    """The text as XML has it, which has no place for some characters."""
    return escape(re.sub("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "·", text), quote=False)


def _drawn(node: Node, lefts: Sequence[float], top: float, is_best: bool) -> Iterator[str]:
    """The elements that show a node: the line from the one before it, and its label."""
    kind = ' class="best"' if is_best else ""
    x, y = lefts[node.column], top + ROW * node.row
    if node.parent is not None:
        from_x = lefts[node.parent.column] + CHARACTER * width(node.parent.label) + 4
        from_y = top + ROW * node.parent.row
        middle = (from_x + x) / 2
        curve = (
            f"M{from_x:.1f},{from_y:.1f} C{middle:.1f},{from_y:.1f} {middle:.1f},{y:.1f} {x - 4:.1f},{y:.1f}"
        )
        yield f'<path d="{curve}"{kind}/>'
    title = f"<title>score {node.score:.3f}</title>" if node.parent is not None else ""
    yield f'<text x="{x:.1f}" y="{y + 4:.1f}"{kind}>{title}{_xml(node.label)}</text>'
