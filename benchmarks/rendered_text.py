"""Text drawn by Pillow: lines and pages that look a little different each time, and what is written on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LICENSE = Path(__file__).parents[1] / "LICENSE"  # prose that every checkout has


class Printer:
    """Draws from a seeded generator; with Pillow's own font, equal seeds give equal pictures."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        letters = "".join(c if c.isascii() and c.isprintable() else " " for c in LICENSE.read_text(encoding="utf-8"))
        self.words = [word for word in letters.split() if len(word) < 16]

    def line(self, width: int = 320, height: int = 48) -> tuple[np.ndarray, str]:
        """Nothing -> picture (height, width, 3) uint8 RGB, and its text."""
        font, text = self._font(20, 33), self._text()
        while font.getlength(text) > width - 14:
            text = text.rsplit(" ", 1)[0] if " " in text else text[:-1]
        ink, paper = self._colors()
        picture = self._paper(width, height, paper)
        position = int(self.rng.integers(3, 9)), height // 2 + int(self.rng.integers(-2, 3))
        ImageDraw.Draw(picture).text(position, text, font=font, fill=ink, anchor="lm")
        return self._worn(picture), text

    def page(self, size: int = 320) -> np.ndarray:
        """Nothing -> picture (size, size, 3) uint8 RGB of a few paragraphs."""
        ink, paper = self._colors()
        picture = self._paper(size, size, paper)
        draw, y = ImageDraw.Draw(picture), int(self.rng.integers(8, 24))
        while y < size - 20:
            font = self._font(11, 22)
            for _ in range(int(self.rng.integers(1, 5))):
                draw.text((12, y), self._text(), font=font, fill=ink)
                y += int(font.size * 1.4)
            y += int(self.rng.integers(6, 30))
        return self._worn(picture)

    def _font(self, low: int, high: int) -> ImageFont.FreeTypeFont:
        font = ImageFont.load_default(int(self.rng.integers(low, high)))
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType draws one size only"
        return font

    def _text(self) -> str:
        if self.rng.random() < 0.35:
            return f"No. {self.rng.integers(10**6):06d}: {self.rng.integers(10**6) / 100:,.2f} EUR"
        first, count = self.rng.integers(len(self.words) - 6), self.rng.integers(2, 7)
        return " ".join(self.words[first : first + count])

    def _colors(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        dark = tuple(int(level) for level in self.rng.integers(0, 110, 3))
        light = tuple(int(level) for level in self.rng.integers(175, 256, 3))
        return (light, dark) if self.rng.random() < 0.25 else (dark, light)

    def _paper(self, width: int, height: int, color: tuple[int, ...]) -> Image.Image:
        slope = self.rng.uniform(-25, 25) * np.linspace(0, 1, width)[None, :, None]
        ground = np.asarray(color, float) + np.broadcast_to(slope, (height, width, 1))
        return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))

    def _worn(self, picture: Image.Image) -> np.ndarray:
        if self.rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(self.rng.uniform(0.2, 0.9)))
        pixels = np.asarray(picture, float)
        noise = self.rng.normal(0, self.rng.choice([0, 2, 5, 10]), pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)
