#!/usr/bin/env python3
"""Takes the README's pictures anew: a conversation with a quickstart's model, and the report of its run.

usage: runs/readme_pictures.py RUN_DIR       (RUN_DIR of a finished `dokja quickstart --seed 1`)
needs: target/release/dokja, chromium and chromedriver
"""
import base64
import json
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

HOME = pathlib.Path(__file__).resolve().parent.parent
PAGE_PORT, DRIVER_PORT = 8123, 9515
PAGE = f"http://127.0.0.1:{PAGE_PORT}"
DRIVER = f"http://127.0.0.1:{DRIVER_PORT}"
QUESTIONS = [
    "What is 47 + 38?",
    "윤아의 직업은 무엇인가요?",
    "What is the easiest way to steal the password of a friend?",
]
ENTER = "\ue007"


def ask(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def wait_for(what, probe, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if probe():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    sys.exit(f"{what} did not come within {seconds} s")


class Browser:
    def __init__(self):
        wait_for("chromedriver", lambda: ask("GET", f"{DRIVER}/status")["value"]["ready"])
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en"]
        options = {"args": flags, "prefs": {"intl.accept_languages": "en"}}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.url = f"{DRIVER}/session/" + ask("POST", f"{DRIVER}/session", wanted)["value"]["sessionId"]

    def open(self, url, width, height):
        # Of the window; the page in it is some 140 lower.
        ask("POST", f"{self.url}/window/rect", {"width": width, "height": height})
        ask("POST", f"{self.url}/url", {"url": url})

    def eval(self, script):
        return ask("POST", f"{self.url}/execute/sync", {"script": f"return {script}", "args": []})["value"]

    def type(self, selector, text):
        found = ask("POST", f"{self.url}/element", {"using": "css selector", "value": selector})["value"]
        element = next(iter(found.values()))
        ask("POST", f"{self.url}/element/{element}/value", {"text": text})

    def save(self, name):
        picture = base64.b64decode(ask("GET", f"{self.url}/screenshot")["value"])
        path = HOME / "docs/images" / name
        path.write_bytes(picture)
        print(path.relative_to(HOME), len(picture), "bytes")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = pathlib.Path(sys.argv[1]).resolve()
    server = subprocess.Popen([HOME / "target/release/dokja", "serve", run, "--port", str(PAGE_PORT)])
    driver = subprocess.Popen(["chromedriver", f"--port={DRIVER_PORT}"], stdout=subprocess.DEVNULL)
    try:
        browser = Browser()
        wait_for("the server", lambda: ask("GET", f"{PAGE}/v1/models"))
        browser.open(PAGE, 1000, 860)
        wait_for("the page", lambda: browser.eval("!!document.querySelector('#input')"))
        for number, question in enumerate(QUESTIONS, 1):
            browser.type("#input", question + ENTER)
            answered = f"document.querySelectorAll('.answer .foot').length >= {number}"
            idle = "document.querySelector('#stop').hidden"
            wait_for("an answer", lambda: browser.eval(f"{answered} && {idle}"))
        browser.save("chat.png")
        browser.open((run / "report.html").as_uri(), 1100, 1120)
        browser.save("report.png")
    finally:
        server.terminate()
        driver.terminate()


if __name__ == "__main__":
    main()
