"""Make the pictures of the README: `python docs/pictures/make.py demo.fdb [FEATURE]`.

terminal.svg is the output of a command, drawn by rich. feature.png is a feature's card as a
notebook shows it, drawn by headless Chromium. explorer*.png are pages of `featuredb serve`: the map
needs `featuredb measure demo.fdb --map` before.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME, TerminalTheme
from rich.text import Text

import featuredb
from featuredb.render.text import write

HERE = Path(__file__).parent
FEATURE = 3722
SIZE = "900,1180"
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 20px; background: white; color: #111;
       font: 14px/1.45 "DejaVu Sans", sans-serif; }}
</style>{body}"""


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    def isatty(self) -> bool:
        return True


def main() -> None:
    path, feature = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else FEATURE
    with featuredb.open(path) as db:
        terminal(f"featuredb top demo.fdb {feature} -k 5", db.top_contexts(feature, k=5))
        notebook(db.feature(feature)._repr_html_())
    explorer(path, feature)


def explorer(path: str, feature: int) -> None:
    """Pages of the explorer, wide and light, narrow and dark."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "featuredb.cli", "serve", path, "--no-open", "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        base = url.partition("/?")[0]
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # WebGL by the CPU, for the map.
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        for name, page, (width, height), scheme in (
            ("explorer", f"/feature/layer13/{feature}", (1280, 1120), "light"),
            ("explorer-text", "/text?context=42&k=6", (1280, 900), "light"),
            ("explorer-contrast", "/contrast?a=topic = 'History'&k=10", (1280, 800), "light"),
            ("explorer-map", "/map?find=music", (1280, 900), "light"),
            ("explorer-narrow", f"/feature/layer13/{feature}", (390, 844), "dark"),
        ):
            size = {"width": width, "height": height}
            tab = browser.new_page(viewport=size, color_scheme=scheme)
            tab.goto(url)
            tab.goto(base + page, wait_until="networkidle")
            tab.screenshot(path=HERE / f"{name}.png")
        server.terminate()


def terminal(command: str, answer: object) -> None:
    """Draw a command and its answer as a terminal shows them."""
    out = Terminal()
    write(answer, out)  # type: ignore[arg-type]
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold green]$[/] {command}", highlight=False)
    console.print(Text.from_ansi(out.getvalue().rstrip()))
    theme = SVG_EXPORT_THEME
    colors = [tuple(theme.ansi_colors[i]) for i in range(16)]
    dark = TerminalTheme(
        tuple(theme.background_color),
        tuple(theme.foreground_color),
        [(20, 20, 20), *colors[1:8]],  # text on shaded tokens is black
        colors[8:],
    )
    svg = console.export_svg(title="featuredb", theme=dark)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts from the network
    svg = "\n".join(line.rstrip() for line in svg.splitlines())
    (HERE / "terminal.svg").write_text(svg + "\n", encoding="utf-8")


def notebook(html: str) -> None:
    """Draw the HTML of an answer."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        body = html.replace(str(Path.home()), "~")
        page.write_text(PAGE.format(body=body), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        shot = [f"--screenshot={HERE / 'feature.png'}", f"--window-size={SIZE}", page.as_uri()]
        subprocess.run([chromium, *options, *shot], check=True, capture_output=True)


if __name__ == "__main__":
    main()
