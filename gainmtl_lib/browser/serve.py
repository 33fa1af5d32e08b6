"""The browser as a page of its own: Voilà behind a token, on this machine only unless one asks for more.

Voilà asks for its token where it runs notebooks and kernels. Without the token it would still hand out what lies below
``voila/static``, ``voila/templates``, ``voila/labextensions`` and ``voila/files``, and a form to log in with.
"""

import logging
import secrets
import socket
import tempfile
import webbrowser
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

import click
import nbformat
from jupyter_core.utils import ensure_async
from jupyter_server.base.handlers import JupyterHandler
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler
from voila.app import Voila

from gainmtl_lib.browser.library import notices, open_runs
from gainmtl_lib.settings import UserError

ADDRESS = "127.0.0.1"
NAME = "CAM browser"
NOTHING_FROM_OUTSIDE = "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; connect-src 'self' ws: wss:"
"""Voilà's page asks a public server for icons: behind a firewall that holds it up, elsewhere it tells of its use."""


class ClosedVoila(Voila):
    """Answers 403 to whoever lacks the token, whatever is asked."""

    def init_handlers(self) -> list[tuple[Any, ...]]:
        """Voilà's handlers of requests, each of them one that asks who is there."""
        handlers = cast("list[tuple[Any, ...]]", super().init_handlers())
        return [(pattern, _closed(handler), *options) for pattern, handler, *options in handlers]


def _closed(handler: type[RequestHandler]) -> type[RequestHandler]:
    bases = (handler,) if issubclass(handler, JupyterHandler) else (JupyterHandler, handler)

    async def prepare(self: Any) -> None:
        if await ensure_async(self.identity_provider.get_user(self)) is not None:
            await ensure_async(super(closed, self).prepare())
            return
        self.set_status(403)
        self.finish("This page needs the token of the address that was printed when it was started.")

    closed = type(f"Closed{handler.__name__}", bases, {"prepare": prepare})
    return closed


def serve_browser(
    runs: Sequence[str | Path],
    *,
    ip: str = ADDRESS,
    port: int | None = None,
    base_url: str = "/",
    open_browser: bool = True,
    data_root: str | Path | None = None,
) -> None:
    """Serve the browser until Ctrl-C. It can be reached from this machine only, unless `ip` is another.

    Args:
        runs: folders of evaluated runs; the first leads.
        ip: address to listen on, ``0.0.0.0`` for all of the machine's, as in a container. The token still guards the
            page, but nothing encrypts it.
        port: to listen on, a free one by default; `UserError` where it is taken.
        base_url: the path under which a proxy shows the page, which it takes away before it passes a request on, such
            as ``/user/anna/proxy/8866/`` of JupyterHub; `UserError` where it is more than a path.
        open_browser: open the page in the user's web browser.
        data_root: where the pictures lie now, when they moved.
    """
    if not base_url.startswith("/") or base_url.startswith("//"):
        expected = "a path that begins with /, such as /user/anna/proxy/8866/"
        raise UserError(f"base_url must be {expected}, got '{base_url}'")
    base_url = f"{base_url.rstrip('/')}/"
    runs = [Path(run).expanduser().absolute() for run in runs]
    root = None if data_root is None else Path(data_root).expanduser().absolute()
    for notice in notices(list(open_runs(runs, data_root=root).values())):
        click.echo(notice)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port or 0))
        except OSError as error:
            told = f"port {port} of {ip}" if port else f"the address {ip}"
            raise UserError(f"{told} cannot be used: {error.strerror}; name another one") from None
        port, token = int(probe.getsockname()[1]), secrets.token_urlsafe(24)
    address = f"http://{ADDRESS if ip == '0.0.0.0' else ip}:{port}/?token={token}"
    told = address if base_url == "/" else f"{base_url}?token={token} on the address of the proxy"
    with tempfile.TemporaryDirectory(prefix="gainmtl-browse-") as name:
        arguments = repr([str(run) for run in runs]) + (f", data_root={str(root)!r}" if root else "")
        # Advice of libraries at import would stand above the page.
        source = (
            "import warnings\nwarnings.simplefilter('ignore')\n"
            f"from gainmtl_lib.browser.app import CamBrowser\nCamBrowser({arguments})"
        )
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, Path(name) / f"{NAME}.ipynb")
        app = _app(Path(name) / f"{NAME}.ipynb", token, ip=ip, port=port, base_url=base_url)
        # The web browser is given a file that only this user can read: the list of processes, which shows what it is
        # given, is for all users of the machine.
        page = Path(name) / "open.html"
        page.touch(mode=0o600)
        page.write_text(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={escape(address)}">\n', "utf-8")

        def ready() -> None:
            click.echo(f"{NAME}: {told}\nCtrl-C ends it.")
            if open_browser and base_url == "/":
                webbrowser.open(page.as_uri())

        IOLoop.current().add_callback(ready)
        app.start()


def _app(notebook: Path, token: str, *, ip: str, port: int, base_url: str) -> ClosedVoila:
    app = ClosedVoila(log_level=logging.CRITICAL)
    app.initialize([str(notebook)])
    for name in ("tornado.access", "tornado.general", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a refused request is no news
    # After the files of the user's own Jupyter settings, so that none of them opens what is closed here.
    app.ip, app.port, app.port_retries, app.base_url, app.server_url = ip, port, 0, base_url, "/"
    app.root_dir, app.token, app.open_browser = str(notebook.parent), token, False
    app.tornado_settings = {"headers": {"Content-Security-Policy": NOTHING_FROM_OUTSIDE}}
    # A page that was closed without saying so leaves a kernel: it ends after an hour.
    app.config.MappingKernelManager.update(cull_idle_timeout=3600, cull_interval=60, cull_connected=False)
    # Behind JupyterHub's proxy the server there has a cookie for the same host: by one name one would hide the other.
    app.config.IdentityProvider.update(cookie_name=f"gainmtl-browse-{port}")
    page = app.voila_configuration
    page.file_allowlist, page.template, page.theme = [], "lab", "light"
    page.allow_template_override = page.allow_theme_override = "NO"
    page.show_tracebacks, page.preheat_kernel = True, False
    return app
