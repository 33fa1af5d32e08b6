"""A browser of what runs decided and looked at, for JupyterLab and, by `gainmtl_lib.serve`, for a page of its own."""

from gainmtl_lib.explain.browser.cam_browser import CamBrowser

__all__ = ["CamBrowser"]
