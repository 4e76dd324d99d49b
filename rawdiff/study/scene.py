"""Rectangles and words on a page, drawn as SVG by hand or as PNG by Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, ImageDraw, ImageFont

__all__ = ["PAPER", "Colour", "Scene"]

Anchor = Literal["start", "middle", "end"]
Colour = tuple[int, int, int]

FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
INK: Colour = (27, 42, 65)
PAPER: Colour = (255, 255, 255)


@dataclass(frozen=True)
class _Rectangle:
    x: float
    y: float
    width: float
    height: float
    colour: Colour
    note: str


@dataclass(frozen=True)
class _Words:
    x: float
    y: float  # of the baseline
    text: str
    size: float
    anchor: Anchor
    colour: Colour


@dataclass
class Scene:
    """A page of `width` by `height` points, drawn from the back to the front."""

    width: float
    height: float
    title: str = ""
    _rectangles: list[_Rectangle] = field(default_factory=list)
    _words: list[_Words] = field(default_factory=list)

    def rectangle(
        self, x: float, y: float, width: float, height: float, colour: Colour, note: str = ""
    ) -> None:
        """A filled rectangle; SVG viewers show its note when pointed at."""
        self._rectangles.append(_Rectangle(x, y, width, height, colour, note))

    def words(
        self, x: float, y: float, text: str, size: float = 11, anchor: Anchor = "start", colour: Colour = INK
    ) -> None:
        """A line of text, `y` at its baseline; it lies over every rectangle."""
        self._words.append(_Words(x, y, text, size, anchor, colour))

    def svg(self) -> bytes:
        """The page as SVG."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family={quoteattr(FONT)}>']
        parts += [
            f"<title>{escape(self.title)}</title>",
            f'<rect width="100%" height="100%" fill="{_hex(PAPER)}"/>',
        ]
        for r in self._rectangles:
            place = (
                f'x="{r.x:g}" y="{r.y:g}" width="{r.width:g}" height="{r.height:g}" fill="{_hex(r.colour)}"'
            )
            parts.append(
                f"<rect {place}><title>{escape(r.note)}</title></rect>" if r.note else f"<rect {place}/>"
            )
        for w in self._words:
            look = f'font-size="{w.size:g}" text-anchor="{w.anchor}" fill="{_hex(w.colour)}"'
            parts.append(f'<text x="{w.x:g}" y="{w.y:g}" {look}>{escape(w.text)}</text>')
        return ("\n".join([*parts, "</svg>"]) + "\n").encode()

    def png(self, scale: float = 2.0) -> bytes:
        """The page as PNG, `scale` pixels a point."""
        image = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), PAPER)
        draw = ImageDraw.Draw(image)
        for r in self._rectangles:
            left, top = round(r.x * scale), round(r.y * scale)
            right, bottom = round((r.x + r.width) * scale), round((r.y + r.height) * scale)
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=r.colour)
        side = {"start": "ls", "middle": "ms", "end": "rs"}
        for w in self._words:
            font = ImageFont.load_default(w.size * scale)
            draw.text((w.x * scale, w.y * scale), w.text, fill=w.colour, font=font, anchor=side[w.anchor])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
