//! A real Chromium without a window, which chromedriver drives.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::process::{Process, Signal};
use crate::scratch::Folder;
use crate::wait::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

/// The keys that have no character of their own, as WebDriver writes them.
pub mod keys {
    /// Moves the focus on.
    pub const TAB: &str = "\u{e004}";
    /// Presses a button, opens a link.
    pub const ENTER: &str = "\u{e007}";
    /// Ticks a box.
    pub const SPACE: &str = " ";
}

/// A browser with one page. It ends with this value.
pub struct Browser {
    _driver: Process,
    _folder: Folder,
    address: String,
    session: String,
}

impl Browser {
    /// Starts one.
    pub fn start() -> Self {
        let folder = Folder::new("browser");
        let mut command = Command::new("chromedriver");
        command.arg("--port=0");
        // It ends the browser when it is asked to end, even if the test has failed.
        let driver = Process::start_logging(&command, &folder.path().join("log"), Signal::Terminate);
        let line = driver.wait_for_line("its port", PATIENCE, |line| line.contains("successfully on port "));
        let port = line.rsplit(' ').next().expect("a port").trim_end_matches('.').to_owned();
        let mut browser = Self {
            _driver: driver,
            _folder: folder,
            address: format!("127.0.0.1:{port}"),
            session: String::new(),
        };
        // Containers run as root, with a small shared memory.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
        ];
        let options = json!({ "alwaysMatch": { "goog:chromeOptions": { "args": arguments } } });
        let made = browser.request("POST", "/session", &json!({ "capabilities": options }));
        browser.session = made["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).expect("connect to chromedriver");
        let body = if method == "GET" { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .expect("ask chromedriver");
        // chromedriver keeps the connection open.
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        for line in answer.by_ref().lines() {
            let line = line.expect("chromedriver's answer").to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).expect("the body of chromedriver's answer");
        let answer: Value = serde_json::from_slice(&body).expect("an answer in JSON");
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }

    fn ask(&self, path: &str, body: &Value) -> Value {
        self.request("POST", &format!("/session/{}{path}", self.session), body)
    }

    fn devtools(&self, command: &str, params: &Value) -> Value {
        self.ask("/goog/cdp/execute", &json!({ "cmd": command, "params": params }))
    }

    /// Opens this address, and waits until the page is loaded.
    pub fn open(&self, url: &str) {
        self.ask("/url", &json!({ "url": url }));
    }

    /// Runs a script as the body of a function, and returns what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.ask("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs a script that may await something.
    pub fn run_async(&self, script: &str) -> Value {
        let script = format!("const done = arguments[0]; (async () => {{ {script} }})().then(done)");
        self.ask("/execute/async", &json!({ "script": script, "args": [] }))
    }

    /// Returns the text that is seen in the element that a selector finds.
    pub fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector({})?.innerText ?? ''", json!(selector)));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element has this text.
    #[track_caller]
    pub fn wait_for_text(&self, selector: &str, text: &str) {
        let mut seen = String::new();
        let found = crate::wait::unless_late(PATIENCE, || {
            seen = self.text(selector);
            seen.contains(text).then_some(())
        });
        assert!(found.is_some(), "{selector} has never had the text {text:?}, but at last:\n{seen}");
    }

    /// Waits until a script returns true.
    #[track_caller]
    pub fn wait_for(&self, what: &str, script: &str) {
        eventually(what, PATIENCE, || (self.run(script) == json!(true)).then_some(()));
    }

    /// Presses keys, one after the other.
    pub fn press(&self, keys: &str) {
        let presses = keys.chars().flat_map(|key| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        });
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": presses.collect::<Vec<_>>() });
        self.ask("/actions", &json!({ "actions": [keyboard] }));
    }

    /// Moves the focus on with the Tab key until this element has it.
    #[track_caller]
    pub fn tab_to(&self, selector: &str) {
        let has_focus = format!("return document.activeElement?.matches({}) ?? false", json!(selector));
        for _ in 0..200 {
            if self.run(&has_focus) == json!(true) {
                return;
            }
            self.press(keys::TAB);
        }
        panic!("the Tab key never comes to {selector}");
    }

    /// Shows the page this wide, in a light or a dark scheme.
    pub fn show(&self, width: u32, height: u32, scheme: &str, scale: u32) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// Lets pages run scripts, or not.
    pub fn allow_scripts(&self, allow: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": !allow }));
    }

    /// Returns a picture of the page as PNG.
    pub fn picture(&self) -> Vec<u8> {
        let picture = self.devtools("Page.captureScreenshot", &json!({ "format": "png" }));
        BASE64_STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("in base64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.request("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
    }
}
