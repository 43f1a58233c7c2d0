"""Making things ahead of time in a thread. What is made is up to `pipeline.py`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item], *, depth: int) -> Iterator[Item]:
    """Yields the same items, made up to `depth` ahead by a thread; its exceptions come out here.

    The thread ends when the iterator is exhausted, closed or garbage.
    """
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(max(1, depth))
    stopped = threading.Event()

    def work() -> None:
        last: BaseException | None = None
        try:
            for item in items:
                while not stopped.is_set():
                    try:
                        ready.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the reader, whatever it is
            last = error
        while not stopped.is_set():
            try:
                return ready.put(last, timeout=0.2)
            except queue.Full:
                continue

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
