"""Ending early without losing a step: signals, and the notice that a cloud machine gives before it goes.

While a step is unsaved, a request to end is kept until the training loop has saved it; at any other time there is
nothing to save, and the process ends at once. Next: `train.py`, which asks between steps.

A thread hears the signals. Python runs its own handlers between two instructions of the main thread, and a compilation
or a wait for the devices is one instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

from frozen_jax.startup import has_accelerator

METADATA_HOST = "GCE_METADATA_HOST"
"""Environment variable with the address of the metadata server, as Google's own libraries read it."""
_NOTICES = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}
_POLL_S, _TIMEOUT_S = 1.0, 5.0


class Stopped(SystemExit):
    """The run was asked to end, and everything that it had done is saved; `code` is the exit status.

    128 + the signal, as a shell reports it: 130 after an interrupt from the keyboard, 143 after a preemption.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Whether this process was asked to end. Without `listen`, only `ask` asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: int | None = None
        self._interrupts = 0
        self._unsaved = False
        self._writer: socket.socket | None = None

    @property
    def asked(self) -> bool:
        """Whether the loop shall save and end."""
        return self._asked is not None

    def stopped(self) -> Stopped:
        """Returns the exception to end with after saving: of the signal heard here, else of a preemption elsewhere."""
        return Stopped(self._asked or signal.SIGTERM)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """The body answers a request that comes after `hold`, by saving and ending.

        Raises:
            Stopped: the request came too late for the body to see it, whose work is done and saved.
        """
        try:
            yield
        finally:
            with self._lock:
                self._unsaved = False
        if self.asked:
            raise self.stopped()

    def hold(self) -> None:
        """From now on there is something to save."""
        with self._lock:
            self._unsaved = True

    def ask(self, number: int, *, why: str) -> None:
        """Takes a request to end; at a second interrupt, or with nothing to save, the process ends here and now.

        Everything on disk is whole at any instant, so that ending at once damages nothing.

        Args:
            number: of the signal, which gives the exit status.
            why: for the user: "SIGTERM", "maintenance of this machine".
        """
        with self._lock:
            self._interrupts += number == signal.SIGINT
            first, self._asked = self._asked is None, self._asked or number
            if not self._unsaved or self._interrupts > 1:
                _say(f"{why}: ending with exit status {128 + number}; the same command goes on from the newest save")
                os._exit(128 + number)
        if first:
            again = "; once more to end at once" if number == signal.SIGINT else ""
            _say(f"{why}: saving after the next step, then ending with exit status {128 + number}{again}")

    def listen(self) -> None:
        """Hears SIGTERM and SIGINT from now on, and on a cloud machine with accelerators its notices; call it once.

        An interrupt that whoever started this process wanted to be ignored, as `nohup` and scripts do, stays ignored.
        """
        reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._hear, args=(reader,), name="signals", daemon=True).start()
        if METADATA_HOST in os.environ or has_accelerator():
            threading.Thread(target=self._watch_machine, name="preemption", daemon=True).start()

    def _hear(self, reader: socket.socket) -> None:
        while True:
            for number in reader.recv(64):
                if number in (signal.SIGTERM, signal.SIGINT):
                    self.ask(number, why=signal.Signals(number).name)

    def _watch_machine(self) -> None:
        """Asks the metadata server once a second, until it gives notice; ends where there is no such server.

        A notice that stood when the run began is no news: otherwise a run started again on a machine whose maintenance
        is an hour away would end at once, again and again.
        """
        try:
            before = {key: _read_metadata(key) for key in _NOTICES}
        except OSError:
            return
        pause = threading.Event()
        while not pause.wait(_POLL_S):
            for key, notices in _NOTICES.items():
                with contextlib.suppress(OSError):  # a server that fails for a while will answer again
                    value = _read_metadata(key)
                    if value in notices and value != before[key]:
                        self.ask(signal.SIGTERM, why=f"notice of this machine, {key} {value}")
                        return
                    before[key] = value


def _read_metadata(key: str) -> str:
    """Source: https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice."""
    host = os.environ.get(METADATA_HOST, "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read(200).decode(errors="replace").strip())
    except urllib.error.HTTPError as error:
        if error.code == 404:  # this key is not on every kind of machine
            return ""
        raise


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
