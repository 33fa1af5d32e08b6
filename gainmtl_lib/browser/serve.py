"""The browser as a page of its own: Voilà on this machine only, behind a token.

Voilà alone would offer a login form, answer with a user's own Jupyter settings, hand out pictures that lie beside the
notebook it serves, and its own scripts to anybody. Here whoever lacks the token gets 403 for whatever is asked, and the
folder that is served holds one made-up notebook and nothing else.
"""

from __future__ import annotations

import logging
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

import click
import nbformat
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.base.handlers import JupyterHandler
from tornado.ioloop import IOLoop
from tornado.web import Finish, RequestHandler
from voila.app import Voila

from gainmtl_lib.browser.library import PictureLibrary

ADDRESS = "127.0.0.1"
NAME = "CAM browser"
NOTHING_FROM_OUTSIDE = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; "
    f"connect-src 'self' ws://{ADDRESS}:*; frame-ancestors 'self'"
)
"""Voilà's page asks a public server for icons: behind a firewall that holds it up, elsewhere it tells of its use."""
FORGOTTEN_AFTER = 3600
"""Seconds after which the kernel of a page that was closed without saying so is ended."""


class ServeError(RuntimeError):
    """The page cannot be served; says why and what to do."""


class TokenOnly(IdentityProvider):
    """Refuses every request without the token, also those that Voilà would answer with a login form."""

    async def get_user(self, handler: RequestHandler) -> User:
        """The holder of the token; anybody else gets 403."""
        user = await self._get_user(handler)
        if user is None:
            handler.set_status(403)
            handler.finish("This page needs the token of the address that was printed when it was started.")
            raise Finish
        return user

    @property
    def login_available(self) -> bool:
        """There is no form to log in with."""
        return False


class ClosedVoila(Voila):
    """Asks for the token also where Voilà hands out files without looking who asks."""

    def init_handlers(self) -> list[tuple[Any, ...]]:
        """Voilà's handlers of requests, each of them one that asks who is there."""
        handlers = cast("list[tuple[Any, ...]]", super().init_handlers())
        return [(pattern, _asking(handler), *options) for pattern, handler, *options in handlers]


def _asking(handler: type[RequestHandler]) -> type[RequestHandler]:
    if issubclass(handler, JupyterHandler):
        return handler
    return type(f"Asking{handler.__name__}", (JupyterHandler, handler), {})


class ThisPython(KernelSpecManager):
    """One kernel, the interpreter that runs now, whatever else is installed for Jupyter."""

    def find_kernel_specs(self) -> dict[str, str]:
        """Its name and the folder of its icons."""
        return {"python3": RESOURCES}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """How to start it."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(["--log-level=ERROR"]))


def serve_browser(
    runs: Sequence[str | Path],
    *,
    port: int | None = None,
    open_browser: bool = True,
    data_root: str | Path | None = None,
    announce: Callable[[str], Any] = click.echo,
) -> None:
    """Serve the browser until Ctrl-C. It can be reached from this machine only.

    Args:
        runs: folders of evaluated runs; the first leads.
        port: to listen on; None takes a free one.
        open_browser: open the page in the user's web browser.
        data_root: where the pictures lie now, when they moved.
        announce: is given the address with its token, once the page can be opened.

    Raises:
        RunError: one of the runs cannot be browsed.
        ServeError: the port is taken.
    """
    runs = [Path(run).expanduser().absolute() for run in runs]
    root = None if data_root is None else Path(data_root).expanduser().absolute()
    library = PictureLibrary(runs, data_root=root)
    library.pictures.close()
    for notice in library.notices:
        announce(notice)
    port, token = _free_port(port), secrets.token_urlsafe(24)
    address = f"http://{ADDRESS}:{port}/?token={token}"
    with tempfile.TemporaryDirectory(prefix="gainmtl-browse-") as name:
        served = Path(name) / "served"
        served.mkdir()
        app = _app(_notebook(served, runs, root), port, token)
        opened = _redirect(Path(name), address) if open_browser else None
        IOLoop.current().add_callback(_ready, address, opened, announce)
        app.start()


def _app(notebook: Path, port: int, token: str) -> ClosedVoila:
    app = ClosedVoila(log_level=logging.CRITICAL)
    app.initialize([str(notebook)])
    for name in ("tornado.access", "tornado.general", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a refused request is no news
    # After the files of the user's own Jupyter settings, so that none of them opens what is closed here.
    app.ip, app.port, app.port_retries, app.base_url, app.server_url = ADDRESS, port, 0, "/", "/"
    app.root_dir, app.token, app.identity_provider_class = str(notebook.parent), token, TokenOnly
    app.open_browser, app.tornado_settings = False, {"headers": {"Content-Security-Policy": NOTHING_FROM_OUTSIDE}}
    app.config.MappingKernelManager.update(cull_idle_timeout=FORGOTTEN_AFTER, cull_interval=60, cull_connected=False)
    page = app.voila_configuration
    page.file_allowlist, page.template, page.theme = [], "lab", "light"
    page.allow_template_override = page.allow_theme_override = "NO"
    page.kernel_spec_manager_class, page.show_tracebacks, page.preheat_kernel = ThisPython, True, False
    return app


def _notebook(folder: Path, runs: Sequence[Path], data_root: Path | None) -> Path:
    arguments = repr([str(run) for run in runs]) + (f", data_root={str(data_root)!r}" if data_root else "")
    # Advice of libraries at import would stand above the page.
    source = (
        "import warnings\nwarnings.simplefilter('ignore')\n"
        f"from gainmtl_lib.explain.browser import CamBrowser\nCamBrowser({arguments})"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{NAME}.ipynb"
    nbformat.write(notebook, path)
    return path


def _redirect(folder: Path, address: str) -> Path:
    """A page that leads to the address and that only this user can read.

    The web browser is given its name instead of the address, whose token all users of the machine could read from the
    list of processes.
    """
    path = folder / "open.html"
    path.touch(mode=0o600)
    path.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={escape(address)}">\n', "utf-8")
    return path


def _ready(address: str, opened: Path | None, announce: Callable[[str], Any]) -> None:
    announce(f"{NAME}: {address}\nCtrl-C ends it.")
    sys.stdout.flush()
    if opened is not None:
        webbrowser.open(opened.as_uri())


def _free_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port or 0))
        except OSError as error:
            raise ServeError(f"port {port} of {ADDRESS} cannot be used: {error.strerror}; name another one") from None
        return int(probe.getsockname()[1])
