"""The pictures of the site, drawn by code: ``python docs/pictures.py`` writes them all into ``docs/pictures``.

They are plain SVG: no program draws them, and a change of a picture is a change that can be read. Each has a background
of its own, so it can be read on a page of any colour, and its colours follow what the reader's system prefers. What a
colour says, words or a pattern say too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

FOLDER: Final = Path(__file__).with_name("pictures")

_STYLE: Final = """
svg { --back: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #8c959f; --plain: #f3f4f6; --restricted: #cfe8d5;
      --unrestricted: #f8d3b8; --untrusted: #d6e2f7; --flush: #7a1fa2; --hatch: #b4530a; }
@media (prefers-color-scheme: dark) {
  svg { --back: #14181d; --ink: #e6e9ed; --soft: #a3adb8; --line: #6e7781; --plain: #22272e; --restricted: #1f4a2e;
        --unrestricted: #63341a; --untrusted: #24406b; --flush: #d9a2f2; --hatch: #f0a35e; } }
text { font: 15px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }
.back { fill: var(--back); } .head { font-weight: 600; } .soft { fill: var(--soft); font-size: 13px; }
.small { font-size: 13px; } .flush { fill: var(--flush); font-size: 13px; font-weight: 600; }
rect { stroke: var(--line); stroke-width: 1; } .back { stroke: none; }
.plain { fill: var(--plain); } .restricted { fill: var(--restricted); } .untrusted { fill: var(--untrusted); }
.unrestricted { fill: var(--unrestricted); } .hatched { fill: url(#hatch); }
.nothing { fill: none; stroke-dasharray: 5 4; }
.wire { stroke: var(--soft); stroke-width: 1.6; fill: none; } .tip { fill: var(--soft); }
.mark { stroke: var(--flush); stroke-width: 3; } .axis { stroke: var(--line); stroke-width: 1; }
""".strip()

_DEFINITIONS: Final = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="tip" d="M0 0 8 4 0 8z"/></marker>'
    '<pattern id="hatch" width="9" height="9" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="9" height="9" style="fill: var(--unrestricted); stroke: none"/>'
    '<path d="M0 0V9" style="stroke: var(--hatch); stroke-width: 3"/></pattern></defs>'
)


@dataclass
class Picture:
    """An SVG that is being drawn.

    :ivar title: What it shows, in a few words.
    :ivar says: What somebody who cannot see it has to know.
    """

    name: str
    width: int
    height: int
    title: str
    says: str
    parts: list[str] = field(default_factory=list)

    def box(self, place: tuple[int, int, int, int], kind: str, label: str = "", more: str = "") -> None:
        """Draw a rectangle, with a line of text in it, and a smaller second one.

        :param place: Left edge, upper edge, width, height.
        """
        x, y, width, height = place
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"/>')
        middle = x + width // 2
        base = y + height // 2 + 5
        if label:
            self.text(middle, base - 9 * bool(more), label, "head" if more else "", "middle")
        if more:
            self.text(middle, base + 10, more, "soft", "middle")

    def text(self, x: int, y: int, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write a line; `x` is its beginning, its middle or its end."""
        self.parts.append(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>')

    def arrow(self, *points: tuple[int, int]) -> None:
        """Draw an arrow along points."""
        way = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(f'<polyline class="wire" points="{way}" marker-end="url(#tip)"/>')

    def mark(self, x: int, top: int, bottom: int, words: str, kind: str = "flush") -> None:
        """Draw an upright stroke with words above it: something that is done at once."""
        self.parts.append(f'<path class="mark" d="M{x} {top}V{bottom}"/>')
        self.text(x, top - 6, words, kind, "middle")

    def svg(self) -> str:
        """Return the file's text."""
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title says">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="says">{escape(self.says)}</desc>',
                f"<style>{_STYLE}</style>",
                _DEFINITIONS,
                f'<rect class="back" width="{self.width}" height="{self.height}" rx="8"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def address_spaces() -> Picture:
    """Draw the two address spaces, and the two ways between them."""
    picture = Picture(
        "address-spaces",
        760,
        380,
        "The two address spaces of a kernel with ASI",
        "The restricted address space maps the kernel's code and its nonsensitive memory. Where the unrestricted one "
        "has user data it has a hole. A touch of the hole leads to the unrestricted address space: an exit. The "
        "return to untrusted code leads back.",
    )
    rows = (
        ("kernel code", "plain"),
        ("kernel's own structures", "plain"),
        ("user data: page cache, anonymous", "hatched"),
    )
    for x, head, kind in ((30, "restricted", "restricted"), (500, "unrestricted", "unrestricted")):
        picture.box((x, 60, 230, 290), kind)
        picture.text(x + 115, 44, f"{head} address space", "head", "middle")
        for number, (label, memory) in enumerate(rows):
            missing = memory == "hatched" and head == "restricted"
            at = 76 + number * 90
            picture.box((x + 15, at, 200, 74), "nothing" if missing else memory)
            if missing:
                picture.text(x + 115, at + 35, "not mapped:", "", "middle")
                picture.text(x + 115, at + 53, "nothing to leak", "", "middle")
            elif memory == "hatched":
                picture.box((x + 30, at + 15, 170, 44), "plain", "user data", "sensitive")
            else:
                picture.text(x + 115, at + 42, label, "", "middle")
    picture.arrow((262, 275), (498, 275))
    picture.text(380, 248, "a touch: page fault", "", "middle")
    picture.text(380, 266, "EXIT", "head", "middle")
    picture.text(380, 294, "before: flush the predictors", "flush", "middle")
    picture.arrow((498, 125), (262, 125))
    picture.text(380, 98, "on the way back to", "", "middle")
    picture.text(380, 116, "untrusted code", "", "middle")
    picture.text(380, 144, "after: flush the buffers", "flush", "middle")
    return picture


def round_trips() -> Picture:
    """Draw three round trips: under the blanket mitigation, and under ASI without and with an exit."""
    picture = Picture(
        "round-trip",
        860,
        470,
        "Three round trips into the kernel",
        "Under the blanket mitigation each entry flushes the predictors and each return flushes the buffers. Under ASI "
        "a round trip that touches nothing sensitive flushes nothing. One that does flushes the predictors at the "
        "touch, before it is unrestricted, and the buffers at the return, after it is restricted again.",
    )
    user, kernel = "untrusted", "unrestricted"
    picture.text(30, 34, "blanket mitigation", "head")
    _lane(
        picture,
        70,
        [(30, 160, user, "user"), (160, 680, kernel, "kernel, everything mapped"), (680, 830, user, "user")],
    )
    picture.mark(160, 66, 118, "flush predictors")
    picture.mark(680, 66, 118, "flush buffers")

    picture.text(30, 174, "ASI, nothing sensitive touched", "head")
    rows = [(30, 160, user, "user"), (160, 680, "restricted", "kernel, restricted"), (680, 830, user, "user")]
    _lane(picture, 210, rows)
    picture.text(160, 200, "entry: nothing", "soft", "middle")
    picture.text(680, 200, "return: nothing", "soft", "middle")

    picture.text(30, 314, "ASI, sensitive memory touched", "head")
    rows = [
        (30, 160, user, "user"),
        (160, 370, "restricted", "kernel, restricted"),
        (370, 640, kernel, "kernel, unrestricted"),
        (640, 830, user, "user"),
    ]
    _lane(picture, 350, rows)
    picture.text(160, 340, "entry: nothing", "soft", "middle")
    picture.mark(370, 346, 398, "EXIT: flush predictors, then CR3")
    picture.mark(640, 346, 398, "ENTER: CR3, then flush buffers")
    picture.arrow((30, 432), (830, 432))
    picture.text(430, 453, "time", "soft", "middle")
    return picture


def _lane(picture: Picture, y: int, stretches: list[tuple[int, int, str, str]]) -> None:
    """Draw what one CPU does, from the left to the right: begin, end, colour, words."""
    for begin, end, kind, label in stretches:
        picture.box((begin, y, end - begin, 44), kind, label)


def stun() -> Picture:
    """Draw two siblings, of which one exits."""
    picture = Picture(
        "stun",
        860,
        330,
        "The stun of a sibling hyperthread",
        "Thread 0 must not be unrestricted while thread 1 runs untrusted code, as both share buffers and predictors. "
        "So its exit marks thread 1 as stunned, interrupts it, and waits until it has left untrusted code. Thread 1 "
        "waits in the kernel until thread 0 has flushed and released it.",
    )
    guest = "untrusted"
    picture.text(30, 84, "thread 0", "head")
    rows = [
        (120, 210, guest, "guest"),
        (210, 320, "restricted", "restricted"),
        (320, 420, "restricted", "waits"),
        (420, 610, "unrestricted", "unrestricted"),
        (610, 700, "restricted", "flushes"),
        (700, 830, guest, "guest"),
    ]
    _lane(picture, 58, rows)
    picture.text(30, 224, "thread 1", "head")
    rows = [(120, 380, guest, "guest"), (380, 740, "plain", "stunned: waits in the kernel"), (740, 830, guest, "guest")]
    _lane(picture, 198, rows)
    picture.text(320, 44, "touch", "soft", "middle")
    picture.text(420, 26, "flush predictors, then CR3", "flush", "middle")
    picture.text(610, 44, "CR3, then flush buffers", "flush", "middle")
    picture.arrow((320, 104), (376, 196))
    picture.text(338, 156, "1. stun, interrupt", "small", "end")
    picture.arrow((388, 196), (418, 106))
    picture.text(414, 156, "2. has left the guest", "small")
    picture.arrow((700, 104), (738, 196))
    picture.text(712, 156, "3. release", "small", "end")
    picture.arrow((120, 286), (830, 286))
    picture.text(475, 308, "time", "soft", "middle")
    return picture


def house() -> Picture:
    """Draw what asikit is made of: one protocol and its uses."""
    picture = Picture(
        "house",
        860,
        400,
        "How the parts of asikit fit together",
        "The protocol is written once, as data. Replay tabulates it over a recording of a real kernel; the price comes "
        "from the replay. Proofs explore it. The model machine runs it; attacks run on the machine. A counterexample "
        "of a proof runs on the machine too, and the machine writes recordings.",
    )
    picture.box((30, 40, 200, 64), "plain", "asi record", "a real kernel in QEMU")
    picture.box((30, 160, 200, 64), "plain", "recording", "first touches, stacks, pages")
    picture.box((330, 40, 200, 64), "plain", "policy", "what is sensitive")
    picture.box((330, 160, 200, 64), "plain", "asi replay", "exits, flushes, causes")
    picture.box((630, 160, 200, 64), "plain", "asi cost", "time, with an interval")
    picture.box((630, 40, 200, 64), "plain", "CPU model", "costs, structures, bugs")
    picture.box((330, 288, 200, 72), "untrusted", "the protocol", "states and steps, as data")
    picture.box((30, 288, 200, 72), "plain", "asi verify", "every interleaving")
    picture.box((630, 288, 200, 72), "plain", "asi run, asi attack", "a model machine")
    picture.arrow((130, 106), (130, 158))
    picture.arrow((232, 192), (328, 192))
    picture.arrow((430, 106), (430, 158))
    picture.arrow((532, 192), (628, 192))
    picture.arrow((730, 106), (730, 158))
    picture.arrow((430, 286), (430, 226))
    picture.text(440, 262, "tabulated", "small")
    picture.arrow((328, 324), (232, 324))
    picture.text(280, 314, "explored", "small", "middle")
    picture.arrow((532, 324), (628, 324))
    picture.text(580, 314, "executed", "small", "middle")
    picture.arrow((130, 362), (130, 384), (730, 384), (730, 362))
    picture.text(430, 378, "each counterexample runs on the machine", "small", "middle")
    return picture


def main(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(exist_ok=True)
    for picture in (address_spaces(), round_trips(), stun(), house()):
        (folder / f"{picture.name}.svg").write_text(picture.svg(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
