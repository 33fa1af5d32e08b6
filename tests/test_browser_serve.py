"""The page of `gainmtl browse`: who lacks its token is refused, whatever is asked."""

import signal
import socket
import urllib.error
import urllib.request
import uuid
import webbrowser
from types import SimpleNamespace
from urllib.parse import quote

import psutil
import pytest
from browsed import SERVE, start_server, write_browsed_run

from gainmtl_lib.browser.serve import ADDRESS, NAME, ClosedVoila, serve_browser
from gainmtl_lib.settings import UserError

SCRIPT = "voila/static/voila.js"
KERNEL = f"api/kernels/{uuid.UUID(int=1)}"
PATHS = (
    "", "login", "logout", "any/path", KERNEL, f"{KERNEL}/channels", "voila/files/picture.png", "api/contents",
    "voila/labextensions/anywidget/package.json", "static/style.css", SCRIPT, f"{SCRIPT}.gone", "favicon.ico",
    "voila/templates/lab/static/voila.js", "voila/templates/none/static/none", "robots.txt",
    "voila/api/themes/none/index.css", "voila/api/shutdown/1",
)  # fmt: skip
WEBSOCKET = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip


def status(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_page_in_a_process_of_its_own_refuses_who_lacks_its_token_and_leaves_nothing_behind(tmp_path):
    run, folder, log = write_browsed_run(tmp_path, pictures=False), tmp_path / "temporary", tmp_path / "page.log"
    folder.mkdir()
    process, said = start_server(["-c", SERVE, str(run.folder)], "Ctrl-C", log, TMPDIR=str(folder))
    try:
        address, query = said.split("?")
        for path in PATHS:
            url = address + path
            asked = [status(url), status(f"{url}?token=guessed"), status(url, Authorization="token guessed")]
            assert [*asked, status(url, **WEBSOCKET)] == [403] * 4, path
        assert status(f"{address}{KERNEL}?{query}") == 404  # no such kernel, which the holder of the token may know
        assert status(f"{address}{SCRIPT}?{query}") == 200
        for file in (quote(f"{NAME}.ipynb"), "open.html", "../page.log", "%2e%2e/page.log"):  # no file is handed out
            assert status(f"{address}voila/files/{file}?{query}") == 403
        port = int(address.removeprefix(f"http://{ADDRESS}:").strip("/"))
        with socket.socket() as other, pytest.raises(OSError):  # it listens on no other address
            other.settimeout(2)
            other.connect(("127.0.0.2", port))
        assert any(folder.iterdir())
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert log.read_text().endswith("ended\n") and "Traceback" not in log.read_text()
        assert not any(folder.iterdir())
    finally:
        process.kill()


def test_the_web_browser_is_given_a_file_that_only_this_user_can_read(tmp_path, monkeypatch):
    found, made = [], tmp_path / "made"

    def look(uri):
        path = next(made.glob("*/open.html"))
        found.append((uri == path.as_uri(), path.stat().st_mode & 0o777, "token=" in path.read_text()))

    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    monkeypatch.setattr(webbrowser, "open", look)
    monkeypatch.setattr(ClosedVoila, "start", lambda app: None)
    at_once = SimpleNamespace(add_callback=lambda ready: ready())
    monkeypatch.setattr("gainmtl_lib.browser.serve.IOLoop.current", lambda: at_once)
    serve_browser([write_browsed_run(tmp_path, pictures=False).folder])
    assert found == [(True, 0o600, True)] and not any(made.iterdir())


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path, capsys):
    run = write_browsed_run(tmp_path, pictures=False)
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .* cannot be used"):
            serve_browser([run.folder], port=port, open_browser=False)
    assert "data_root" in capsys.readouterr().out


def test_a_proxy_shows_it_below_a_path_and_a_container_lets_it_listen_outside(tmp_path):
    run, base = write_browsed_run(tmp_path, pictures=False), "/user/anna/proxy/8866/"
    options = f"[sys.argv[1]], ip='0.0.0.0', base_url={base.rstrip('/')!r}, open_browser=False"
    source = f"import sys; from gainmtl_lib.browser.serve import serve_browser; serve_browser({options})"
    process, said = start_server(["-c", source, str(run.folder)], "Ctrl-C", tmp_path / "page.log")
    try:
        path, query = said.split("?")
        assert path == base and query.startswith("token=")
        (port,) = {
            one.laddr.port
            for one in psutil.Process(process.pid).net_connections()
            if one.status == "LISTEN" and one.laddr.ip == "0.0.0.0"
        }
        address = f"http://127.0.0.2:{port}/"  # the proxy has taken the path away
        assert status(address) == 403 and status(f"{address}?{query}") == 200
        with urllib.request.urlopen(f"{address}?{query}") as answer:
            page = answer.read().decode()
        assert f'"baseUrl": "{base}"' in page and f"{base}voila/" in page
    finally:
        process.kill()
    with pytest.raises(UserError, match=r"base_url must be a path that begins with /, such as .*, got 'https://h/p'"):
        serve_browser([run.folder], base_url="https://h/p")
    with pytest.raises(UserError, match=r"the address 203\.0\.113\.1 cannot be used"):
        serve_browser([run.folder], ip="203.0.113.1")
