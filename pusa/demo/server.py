"""The page's server: what it looks like as a whole, and what it lets the browser fetch."""

from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from pusa.demo.files import read_text
from pusa.demo.page import Page

# Nothing is fetched from anywhere but this server, whatever a library's page would like to fetch.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:"
)


def serve(page: Page, host: str, port: int, share: bool) -> str:
    """Start the server in a thread; returns the page's address. OSError if the port is taken."""
    queue = page.blocks.queue(default_concurrency_limit=4)
    try:
        _, local, public = queue.launch(
            server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True,
            allowed_paths=[str(page.workshop.folder.resolve())], theme=_theme(),
            css=read_text("page.css"), footer_links=[], run_history=False, ssr_mode=False,
            max_file_size="2gb", app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
        )  # fmt: skip
    except OSError as error:
        if "empty port" not in str(error):
            raise
        raise OSError(f"port {port} of {host} is taken; choose another one: --port.") from error
    return public or local


class OnlyFromHere:
    """Adds the policy to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message["headers"], policy]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _theme() -> gr.themes.Base:
    """System fonts: the default ones come from Google."""
    fonts = ["system-ui", "sans-serif"]
    return gr.themes.Soft(
        primary_hue="violet",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )
