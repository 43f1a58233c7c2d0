"""`python -m frozen_jax.tools.demo --workdir=DIR`: a web page that captions, answers, continues prompts and searches.

With a fusion it names the class of a picture and a text, with a generator it draws.

For this machine alone unless `--host` says otherwise; see docs/demo.md. What is answered is in `demo/answers.py`, the
page in `demo/layout.py`, what it refuses in `demo/limits.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frozen_jax.demo.answers import open_demo
from frozen_jax.demo.examples import write_examples
from frozen_jax.demo.layout import STYLE, build_page, make_theme
from frozen_jax.demo.limits import Guard, Limits
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.export.layout import is_export
from frozen_jax.restore import read_settings

PORT = 7860


@contextlib.contextmanager
def serve(
    path: Path, *, gallery: Path | None = None, host: str = "127.0.0.1", port: int = PORT, limits: Limits | None = None
) -> Iterator[str]:
    """Serves the page while the body runs; uploads go with it.

    Args:
        path: whatever `frozen_jax.load` takes.
        gallery: folder of pictures to search.
        host: address to listen at; "0.0.0.0" is every network of this machine.
        port: to listen at.
        limits: how much browsers may ask.

    Yields:
        The page's address.

    Raises:
        UserError: no Gradio, as `open_demo`, or the address is in use or not this machine's.
    """
    check_address(host, port)
    allowed = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="frozen_jax_demo_") as folder:
        gradio = import_gradio(Path(folder))
        examples = write_examples(Path(folder), None if is_export(path) else read_settings(path))
        demo = open_demo(path, examples=[example.path for example in examples], gallery=gallery)
        page = build_page(gradio, demo, examples, stored_s=allowed.stored_s)
        demo.warm_up(examples[0])
        page.queue(max_size=allowed.waiting, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                max_file_size=allowed.upload_bytes,
                css_paths=[STYLE],
                theme=make_theme(gradio),
                app_kwargs={"middleware": [(Guard, (), {"limits": allowed, "uploads": Path(folder)})]},
            )
        except OSError as error:
            raise UserError(f"the page cannot be served at {host}:{port} ({error}); choose another --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def import_gradio(folder: Path) -> Any:
    """Imports Gradio so that it reports nothing, shares nothing and keeps its files in `folder`.

    Raises:
        UserError: it is not installed.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # what is served, where and how is said here alone
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder), HF_HUB_DISABLE_TELEMETRY="1")
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise UserError(
            "the web page needs Gradio, which is not installed; install the extra: pip install 'frozen_jax[demo]'"
        ) from error


def check_address(host: str, port: int) -> None:
    """Refuses an address that cannot be listened at.

    Raises:
        UserError: the port is in use or out of range, or the host is none of this machine's.
    """
    if not 0 < port < 65536:
        raise UserError(f"--port={port} is no port; choose one in 1..65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise UserError(
            f"the page cannot listen at {host}:{port} ({error.strerror}); stop what uses the port, or choose another "
            "one with --port, or --host=127.0.0.1"
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and serves until interrupted; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.demo",
        description="Serves a trained model as a web page.",
        epilog="example: python -m frozen_jax.tools.demo --workdir=runs/quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run, an export or a release")
    parser.add_argument("--gallery", type=Path, help="folder of pictures that can be searched")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others reach the page; this machine alone")
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT} by default")
    given = parser.parse_args(arguments)
    ended = threading.Event()
    with (
        exit_in_one_line(),
        serve(given.workdir, gallery=given.gallery, host=given.host, port=given.port) as address,
    ):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        print(f"{address} (Ctrl-C ends it)", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
