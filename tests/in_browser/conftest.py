"""What the checks in a real web browser share: Chromium, two tiny runs and servers."""

import shutil
import signal

import pytest
from browsed import SERVE, start_server
from playwright.sync_api import sync_playwright
from tiny import tiny_settings

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.train import fit

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")


@pytest.fixture(scope="module")
def chromium():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.fail(f"no web browser to check with; install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(20_000)
    yield page
    page.close(run_before_unload=True)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Folders of S5 and S3, trained on the same 40 pictures."""
    folder = tmp_path_factory.mktemp("study")
    made = [fit(tiny_settings(folder, strategy, learning_rate=3e-3)) for strategy in ("S5", "S3")]
    for run in made:
        evaluate(run)
    return [run.folder for run in made]


@pytest.fixture
def serve(tmp_path_factory):
    """Starts a server in a process of its own; gives the address that it says."""
    started = []

    def start(command, ready, **environment):
        process, address = start_server(command, ready, tmp_path_factory.mktemp("server") / "log", **environment)
        started.append(process)
        return address

    yield start
    for process in started:
        process.send_signal(signal.SIGINT if "-c" in process.args else signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def own_page(runs, serve):
    return serve(["-c", SERVE, *map(str, runs)], "Ctrl-C")


@pytest.fixture
def lab(serve, tmp_path, tmp_path_factory):
    """Address of the notebooks in `tmp_path` in a JupyterLab that knows nothing of the user's own settings."""
    folder = tmp_path_factory.mktemp("lab")
    options = [
        "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0",
        f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token=check", "--LabApp.news_url=None",
        f"--LabApp.user_settings_dir={folder / 'settings'}", f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]  # fmt: skip
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    return serve(options, "/lab?token=", **own).split("/lab?")[0] + "/lab/tree/"
