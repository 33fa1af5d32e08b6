"""Servers in processes of their own, for a web browser to look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Started:
    """A server in a process of its own that says when it is ready."""

    def __init__(self, command: list[str], ready: str, log: Path, **environment: str) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
            )
        until = time.monotonic() + 90
        while ready not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                pytest.fail(f"{command[:4]} did not get ready:\n{log.read_text()}")
            time.sleep(0.2)

    def end(self, by: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(by)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """Address of a JupyterLab on `folder`/files that knows nothing of the user's own settings; `{}` in it stands for a file."""
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    options = [
        "--ServerApp.port=0",
        f"--ServerApp.root_dir={folder / 'files'}",
        "--IdentityProvider.token=check",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    started = Started([*command, *options], "/lab?token=", folder / "log", **own)
    address = next(line for line in started.log.read_text().split() if line.startswith("http://127.0.0.1"))
    yield address.split("/lab?")[0] + "/lab/tree/{}?token=check&reset"
    started.end(signal.SIGTERM)  # Ctrl-C is heard in a terminal only
