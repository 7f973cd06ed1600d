//! A browser, driven over WebDriver: just what the tests of the page ask.
//!
//! Source: W3C WebDriver; the commands of Chromium's own protocol go through `goog/cdp/execute`.

use crate::client::agent;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) struct Browser {
    driver: Child,
    session: String, // URL
    _profile: tempfile::TempDir,
}

/// The key that a W3C WebDriver sends for Enter, and for Shift down and up.
pub(crate) const ENTER: &str = "\u{E007}";
pub(crate) const SHIFT: &str = "\u{E008}";

/// Rounds of waiting for a condition take the browser this long at most.
const PATIENCE_MS: u64 = 60_000;

impl Browser {
    /// A browser that prefers `language`, or the reason why there is none.
    pub(crate) fn start(language: &str) -> Result<Browser, String> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("chromedriver does not start ({error})"))?;
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let has = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        let Some(binary) = names.iter().find(has).and_then(|name| which(name)) else {
            stop(&mut driver);
            return Err("there is no chromium".into());
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            let (_, port) = line.split_once("started successfully on port ")?;
            Some(port.trim_end_matches('.').to_owned())
        });
        // What it writes later must have somewhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Browser {
            driver,
            session: format!(
                "http://127.0.0.1:{}/session",
                port.expect("chromedriver starts")
            ),
            _profile: profile,
        };
        let profile = browser._profile.path().display();
        let mut args = vec![
            format!("--user-data-dir={profile}"),
            format!("--accept-lang={language}"),
            format!("--lang={language}"),
            "--window-size=1200,800".into(),
        ];
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
                     --disable-background-networking --disable-component-update --disable-sync";
        args.extend(flags.split_whitespace().map(str::to_owned));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": binary, "args": args},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "timeouts": {"script": PATIENCE_MS},
        }}});
        let session = browser.command("", &capabilities);
        let id = session["sessionId"].as_str().expect("a session has an id");
        browser.session = format!("{}/{id}", browser.session);
        // The page of a new tab makes requests of its own.
        browser.open("about:blank");
        browser.requested();
        Ok(browser)
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.session);
        let response = agent().post(url).send_json(body).unwrap();
        let answer: Value = response.into_body().read_json().unwrap();
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{path} {body}: {value}");
        value
    }

    pub(crate) fn open(&self, url: &str) {
        self.command("/url", &json!({"url": url}));
    }

    /// The value of a JavaScript expression.
    pub(crate) fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    pub(crate) fn text_of(&self, selector: &str) -> String {
        let text = self.eval(&format!(
            "document.querySelector({})?.innerText",
            json!(selector)
        ));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Returns when the expression is true, which the page looks at many times a second.
    pub(crate) fn wait_for(&self, expression: &str) {
        let rounds = PATIENCE_MS / 20 * 9 / 10;
        let script = format!(
            "const done = arguments[0]; let left = {rounds};
             (function look() {{
               if ({expression}) done(true);
               else if (left-- > 0) setTimeout(look, 20);
               else done(false);
             }})();"
        );
        let body = json!({"script": script, "args": []});
        let is_true = self.command("/execute/async", &body) == true;
        let page = || self.eval("document.body.innerText");
        assert!(
            is_true,
            "this did not become true: {expression}\n{}",
            page()
        );
    }

    fn element(&self, selector: &str) -> String {
        let found = self.command(
            "/element",
            &json!({"using": "css selector", "value": selector}),
        );
        let mut ids = found.as_object().unwrap().values();
        format!("/element/{}", ids.next().unwrap().as_str().unwrap())
    }

    pub(crate) fn click(&self, selector: &str) {
        self.command(&format!("{}/click", self.element(selector)), &json!({}));
    }

    /// Types as on a keyboard.
    pub(crate) fn type_into(&self, selector: &str, keys: &str) {
        self.command(
            &format!("{}/value", self.element(selector)),
            &json!({"text": keys}),
        );
    }

    /// A command of Chromium's own protocol.
    pub(crate) fn devtools(&self, name: &str, parameters: Value) -> Value {
        self.command(
            "/goog/cdp/execute",
            &json!({"cmd": name, "params": parameters}),
        )
    }

    pub(crate) fn set_viewport(&self, width: u32, height: u32) {
        let is_phone = width < 600;
        let metrics = json!({
            "width": width, "height": height, "mobile": is_phone,
            "deviceScaleFactor": if is_phone { 2 } else { 1 },
        });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
    }

    pub(crate) fn set_colours(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// What the page wrote to its console since the last look, errors of the browser included.
    pub(crate) fn console(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "browser"}));
        log.as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["message"].to_string())
            .collect()
    }

    /// The addresses of all requests since the last look.
    pub(crate) fn requested(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "performance"}));
        let events = log.as_array().unwrap().iter().map(|entry| {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            message["message"].clone()
        });
        let sent = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.map(|event| {
            event["params"]["request"]["url"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
    }

    pub(crate) fn save_screenshot(&self, path: &Path) {
        let shot = self.devtools("Page.captureScreenshot", json!({}));
        std::fs::write(path, from_base64(shot["data"].as_str().unwrap())).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends the browser; the driver would leave it running.
        let config = agent().delete(&self.session).config();
        let _ = config
            .timeout_global(Some(Duration::from_secs(10)))
            .build()
            .call();
        stop(&mut self.driver);
    }
}

fn stop(driver: &mut Child) {
    let _ = driver.kill();
    let _ = driver.wait();
}

/// The path of a program, as the shell finds it.
fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// RFC 4648, section 4.
fn from_base64(text: &str) -> Vec<u8> {
    let sextet = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().map(sextet).collect();
    let four = |chunk: &[u8]| {
        let bits = (0..4).fold(0u32, |bits, i| {
            bits << 6 | u32::from(chunk.get(i).copied().unwrap_or(0))
        });
        bits.to_be_bytes()[1..chunk.len()].to_vec()
    };
    digits.chunks(4).flat_map(four).collect()
}
