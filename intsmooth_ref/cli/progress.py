"""Progress on a terminal: images done, samples per second, time left. Silent where standard error is no terminal."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

INTERVAL = 0.1


class Progress:
    """One line on standard error, rewritten at most ten times a second."""

    def __init__(self, images: int, samples_per_image: int, what: str = "images") -> None:
        self._shown = sys.stderr.isatty()
        self._images, self._samples_per_image, self._what = images, samples_per_image, what
        self._begin = self._last = time.monotonic()
        self._visible = False
        self.images_done = self.samples_done = 0
        self._show("preparing")

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._begin, 1e-9)

    @property
    def samples_per_second(self) -> int:
        return round(self.samples_done / self.seconds)

    def samples(self, count: int) -> None:
        """Count samples done."""
        self.samples_done += count
        now = time.monotonic()
        if self._shown and now - self._last >= INTERVAL:
            self._last = now
            left = self._images * self._samples_per_image - self.samples_done
            remaining = timedelta(seconds=round(left * self.seconds / self.samples_done))
            self._show(f"{self.samples_per_second} samples/s, {remaining} left")

    def _show(self, text: str) -> None:
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{self.images_done}/{self._images} {self._what}, {text}")
            sys.stderr.flush()
            self._visible = True

    def image(self) -> None:
        """Count an image done."""
        self.images_done += 1

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        if self._visible:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._visible = False
