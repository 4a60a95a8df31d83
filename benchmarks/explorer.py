"""What the explorer's pages cost: `python -m benchmarks.explorer demo.fdb`.

Prints the tables of docs/benchmarks.md. Per page: milliseconds on the server (median and 95th
percentile over different features or contexts, none asked for before), CPU of the server for one,
and bytes. Then, by headless Chromium with an empty cache: the first contentful paint beside that of
an empty page, by turns, requests and bytes. Then many clients (`--clients`, `--seconds`), each on a
page of its own: people, who read for 5 s on average before the next page, and programs with a page
a second each: requests, failures, 50th and 99th percentile, the server's CPU, how its memory grew.
`--no-load` leaves that out: on a machine that others use, CPU is what can be trusted.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import featuredb

Page = Callable[[random.Random], str]
_PAINTS = 15
_WORDS = ("music", "river", "war", "king", "bridge", "island", "disease", "science", "church")


class Server:
    """`featuredb serve` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.url = process.stdout.readline().strip()
        self.base, _, token = self.url.partition("/?token=")
        self.pid = process.pid
        self._port = urlsplit(self.base).port or 0
        self._cookie = {"Cookie": f"featuredb-{self._port}={token}"}

    def get(self, path: str) -> tuple[int, int, float]:
        """Status, bytes, seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        started = time.perf_counter()
        connection.request("GET", path, headers=self._cookie)
        answer = connection.getresponse()
        size = len(answer.read())
        connection.close()
        return answer.status, size, time.perf_counter() - started

    @property
    def cpu(self) -> float:
        """Seconds of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def memory(self) -> int:
        """Resident bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * 4096


@contextmanager
def serving(path: str) -> Iterator[tuple[Server, float]]:
    """A server, and the seconds until it printed its address."""
    command = [sys.executable, "-m", "featuredb.cli", "serve", path, "--no-open", "--port", "0"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        server = Server(process)
        yield server, time.perf_counter() - started
        process.terminate()


def pages(path: str) -> dict[str, Page]:
    """Addresses of each page, drawn at random."""
    with featuredb.open(path) as db:
        sae = db.saes[0]
        contexts = sum(corpus.n_contexts for corpus in db.snapshot.corpora)
    name = quote(sae.name)

    def feature(draw: random.Random) -> str:
        return f"{name}/{draw.randrange(sae.d_sae)}"

    return {
        "home": lambda draw: f"/?offset={draw.randrange(1_000)}",
        "feature": lambda draw: f"/feature/{feature(draw)}",
        "sample": lambda draw: f"/feature/{feature(draw)}?show=sample",
        "nearest": lambda draw: f"/feature/{feature(draw)}?panel=nearest&fragment=1",
        "range": lambda draw: f"/feature/{feature(draw)}?panel=range&fragment=1",
        "places": lambda draw: f"/feature/{feature(draw)}?panel=places&fragment=1",
        "groups": lambda draw: f"/feature/{feature(draw)}?panel=groups&fragment=1",
        "encoder": lambda draw: f"/feature/{feature(draw)}?panel=near-encoder&fragment=1",
        "coactive": lambda draw: f"/feature/{feature(draw)}?panel=coactive-token&fragment=1",
        "text": lambda draw: f"/text?context={draw.randrange(contexts)}",
        "compare": lambda draw: f"/compare?a={feature(draw)}&b={feature(draw)}",
        "find": lambda draw: f"/find?any={feature(draw)},{feature(draw)}",
        "search": lambda draw: f"/search?q={draw.choice(_WORDS)}+{draw.choice(_WORDS)}",
        "sql": lambda draw: f"/sql?q=FROM+near('{feature(draw)}')",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--no-load", action="store_true")
    options = parser.parse_args()
    asked = pages(options.path)
    with serving(options.path) as (server, start):
        print("| page | p50 ms | p95 ms | CPU ms | KB |")
        print("| --- | --: | --: | --: | --: |")
        for name, page in asked.items():
            draw = random.Random(name)
            server.get(page(random.Random(0)))
            before = server.cpu
            answers = [server.get(page(draw)) for _ in range(options.rounds)]
            cpu = 1e3 * (server.cpu - before) / options.rounds
            times = statistics.quantiles([1e3 * seconds for *_, seconds in answers], n=20)
            size = statistics.median(size for _, size, _ in answers) / 1e3
            print(f"| {name} | {times[9]:.0f} | {times[18]:.0f} | {cpu:.0f} | {size:.0f} |")
        print(f"\nThe server answers {start:.1f} s after it is started.")
        paint(server, asked["feature"])
        if not options.no_load:
            for who, every, least in (("people", 5.0, 2.0), ("programs", 1.0, 1.0)):
                load(server, asked["feature"], who, options.clients, options.seconds, every, least)


def paint(server: Server, page: Page) -> None:
    """How soon a browser with an empty cache shows something of features' pages."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium: first contentful paint not measured")
        return
    from playwright.sync_api import sync_playwright

    draw = random.Random(1)
    with sync_playwright() as playwright, empty_page() as empty:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        paints: dict[str, list[float]] = {"an empty page": [], "a feature": []}
        sizes, requests = [], 0
        for _ in range(_PAINTS):
            for name, address in zip(paints, (empty, server.base + page(draw)), strict=True):
                context = browser.new_context()
                tab = context.new_page()
                context.request.get(server.url)
                # The browser loads pages of its own beside a new tab's first.
                tab.wait_for_timeout(700)
                tab.goto(address, wait_until="load")
                tab.wait_for_timeout(300)
                entry = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                # Not wait_for_function: the pages' policy allows no eval.
                paints[name].append(tab.evaluate(entry))
                loaded = tab.evaluate(
                    "[...performance.getEntriesByType('navigation'), "
                    "...performance.getEntriesByType('resource')].map((e) => e.transferSize)"
                )
                requests = len(loaded)
                if address != empty:
                    sizes.append(sum(loaded))
                context.close()
        browser.close()
    for name, times in paints.items():
        marks = statistics.quantiles(times, n=4)
        print(
            f"first contentful paint, {name}: {marks[1]:.0f} ms ({marks[0]:.0f} to {marks[2]:.0f})"
        )
    print(f"a feature: {requests} requests, {statistics.median(sizes) / 1e3:.0f} KB")


@contextmanager
def empty_page() -> Iterator[str]:
    """The address of a page with a word."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>empty</title><p>empty")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def load(
    server: Server, page: Page, who: str, clients: int, seconds: float, every: float, least: float
) -> None:
    """Many clients, each with a page every so many seconds on average, and at least `least`."""
    times: list[float] = []
    failures: list[object] = []
    before, cpu, until = server.memory, server.cpu, time.monotonic() + seconds

    def client(number: int) -> None:
        draw = random.Random(number)
        time.sleep(every * draw.random())
        while time.monotonic() < until:
            try:
                status, _, took = server.get(page(draw))
            except OSError as error:
                failures.append(error)
                continue
            times.append(1e3 * took)
            if status != 200:
                failures.append(status)
            wait = least + (every - least) * 2 * draw.random()
            time.sleep(max(0.0, min(wait - took, until - time.monotonic())))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    grown = []
    for left in (3, 2, 1, 0):
        time.sleep(max(0.0, until - left * seconds / 4 - time.monotonic()))
        grown.append(f"{(server.memory - before) / 1e6:+.0f}")
    for thread in threads:
        thread.join()
    marks = statistics.quantiles(times, n=100)
    spent = 1e3 * (server.cpu - cpu) / len(times)
    print(
        f"{clients} {who} for {seconds:.0f} s: {len(times):,} pages, {len(failures)} failed, "
        f"p50 {marks[49]:.0f} ms, p99 {marks[98]:.0f} ms, CPU {spent:.0f} ms a page, "
        f"memory after each quarter {', '.join(grown)} MB"
    )


if __name__ == "__main__":
    main()
