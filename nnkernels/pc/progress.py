"""A line on stderr that is written over while samples go by."""

import sys
import time


class Line:
    """The progress of one piece of work; nothing where it is to be quiet.

    name: what is worked on. itemsize: bytes of a sample.
    """

    def __init__(self, name: str, itemsize: int, quiet: bool):
        self._name, self._itemsize, self._quiet = name, itemsize, quiet
        self._start = self._shown = time.monotonic()
        self._width = 0

    def show(self, done: int, total: int, bpd: float, name: str = "") -> None:
        """done of total samples, which take `bpd` bits per dimension."""
        now = time.monotonic()
        if self._quiet or (done < total and now - self._shown < 0.1):
            return
        self._shown = now
        rate = done / max(now - self._start, 1e-9)
        left = (total - done) / rate if rate else 0.0
        text = (
            f"{name or self._name}: {done:,}/{total:,} samples, {rate:,.0f} samples/s, "
            f"{rate * self._itemsize / 1e6:.2f} MB/s, {bpd:.4f} bpd, {left:.0f} s left"
        )
        print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def close(self) -> None:
        """Ends the line, if one was begun."""
        if self._width:
            print(file=sys.stderr, flush=True)
