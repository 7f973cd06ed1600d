//! The chat page in a real browser: Chromium without a window.
//!
//! Without a browser the tests say that they were skipped; `DOKJA_REQUIRE_BROWSER=1` makes that a failure.

use crate::scripted_model::Gate;
use crate::test_server::{TestServer, config, factory};
use crate::webdriver::{Browser, ENTER, SHIFT};
use dokja_serve::{ApiKeys, ServeConfig};
use infer::EngineConfig;
use serde_json::json;
use std::path::Path;

const IDLE: &str = "document.querySelector('#stop').hidden";
const LAST_ANSWER: &str = ".answer:last-child .body";

#[expect(clippy::print_stderr, reason = "a skip is told with its reason")]
fn browser(language: &str) -> Option<Browser> {
    match Browser::start(language) {
        Ok(browser) => Some(browser),
        Err(reason) => {
            let is_required = std::env::var("DOKJA_REQUIRE_BROWSER").is_ok_and(|v| v == "1");
            assert!(!is_required, "a browser is required: {reason}");
            eprintln!("skipped: {reason}; install chromium and chromedriver to test the page");
            None
        }
    }
}

fn ask(browser: &Browser, question: &str) {
    browser.type_into("#input", question);
    browser.type_into("#input", ENTER);
}

fn num_turns(browser: &Browser) -> u64 {
    browser
        .eval("document.querySelectorAll('.turn').length")
        .as_u64()
        .unwrap()
}

#[test]
fn the_page_loads_alone_and_quietly_under_a_strict_policy() {
    let server = TestServer::start();
    let page = server.get("/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'sha256-"),
        "{policy}"
    );
    assert!(
        !policy.contains("unsafe") && policy.contains("connect-src 'self'"),
        "{policy}"
    );
    assert_eq!(page.header("x-content-type-options"), "nosniff");

    let Some(browser) = browser("ko-KR") else {
        return;
    };
    browser.open(&server.url);
    browser.wait_for("document.querySelector('#examples button')");
    assert_eq!(browser.eval("document.title"), "scripted");
    assert_eq!(browser.eval("document.documentElement.lang"), "ko");
    assert_eq!(browser.text_of("h1"), "무엇을 물어볼까요?");
    // An example is a question; its answer leaves the page as quiet as it was.
    browser.click("#examples button");
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} p')"
    ));
    assert_eq!(browser.text_of(LAST_ANSWER), "안녕하세요");
    assert!(browser.text_of(".answer .foot").contains("토큰"));
    assert_eq!(browser.console(), [""; 0]);
    let requested = browser.requested();
    let is_own = |url: &String| url.starts_with(&server.url) || url.starts_with("data:");
    assert!(
        requested.len() >= 3 && requested.iter().all(is_own),
        "{requested:?}"
    );

    // Another reader, another language.
    let english = json!({"userAgent": "test", "acceptLanguage": "en-GB"});
    browser.devtools("Network.setUserAgentOverride", english);
    browser.open(&server.url);
    browser.wait_for("document.documentElement.lang === 'en'");
    // What was said is still there, with the page in the other language around it.
    assert_eq!(
        (num_turns(&browser), browser.text_of("#new").as_str()),
        (2, "New conversation")
    );
}

#[test]
fn a_conversation_goes_on_stops_and_begins_anew() {
    let Some(browser) = browser("ko-KR") else {
        return;
    };
    let gate = Gate::closed();
    let server = TestServer::start_gated(&gate, EngineConfig::default());
    browser.open(&server.url);

    // The text appears as it is written, and Enter sends nothing while it is.
    ask(&browser, "talk on");
    gate.allow(8);
    browser.wait_for(&format!(
        "document.querySelector('{LAST_ANSWER}')?.innerText.startsWith('말')"
    ));
    assert_eq!(browser.eval("document.querySelector('#input').value"), "");
    assert_eq!(browser.eval(IDLE), false);
    ask(&browser, "wait");
    assert_eq!(
        (num_turns(&browser), browser.eval("input.value")),
        (2, json!("wait"))
    );

    // Stop ends it here and in the engine, and keeps what there is.
    browser.click("#stop");
    browser.wait_for(IDLE);
    server.step_until(&gate, |load| load == (0, 0));
    assert!(browser.text_of(LAST_ANSWER).starts_with('말'));
    assert!(browser.text_of(".answer .foot").contains("여기서 멈췄어요"));

    // What was typed meanwhile is sent now; the answer to it follows the first.
    gate.allow(100_000);
    browser.type_into("#input", ENTER);
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} p')"
    ));
    assert_eq!(browser.text_of(LAST_ANSWER), "You asked: wait");

    // Shift+Enter is a new line.
    browser.type_into("#input", &format!("a{SHIFT}{ENTER}{SHIFT}b"));
    assert_eq!(browser.eval("input.value"), "a\nb");
    let grown = browser.eval("input.clientHeight > 50");
    assert_eq!((num_turns(&browser), grown), (4, json!(true)));

    // A reload keeps the conversation; only a new one clears it.
    browser.open(&server.url);
    browser.wait_for("document.querySelectorAll('.turn').length === 4");
    browser.click("#new");
    assert_eq!(num_turns(&browser), 0);
    assert_eq!(
        browser.eval("document.querySelector('#empty').hidden"),
        false
    );
    assert_eq!(browser.eval("document.activeElement.id"), "input");
    browser.open(&server.url);
    browser.wait_for("document.querySelector('#examples button')");
    assert_eq!(num_turns(&browser), 0);
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn enter_while_a_syllable_is_composed_does_not_send() {
    let Some(browser) = browser("ko-KR") else {
        return;
    };
    let server = TestServer::start();
    browser.open(&server.url);
    browser.click("#input");
    let compose = |text: &str| {
        let at = text.chars().count();
        let parameters = json!({"text": text, "selectionStart": at, "selectionEnd": at});
        browser.devtools("Input.imeSetComposition", parameters);
    };
    let press_enter = |code: u32| {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({
                "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": code,
            });
            browser.devtools("Input.dispatchKeyEvent", key);
        }
    };
    // ㅎ, 하, 한: one syllable in the making, which Enter ends.
    browser.eval(
        "addEventListener('keydown', (event) => { window.wasComposing = event.isComposing; })",
    );
    for step in ["ㅎ", "하", "한"] {
        compose(step);
    }
    press_enter(13);
    assert_eq!(
        browser.eval("window.wasComposing"),
        true,
        "the browser composes"
    );
    assert_eq!(
        (num_turns(&browser), browser.eval("input.value")),
        (0, json!("한"))
    );
    // Some browsers end the composition first and give away by the key code what the Enter was for.
    browser.devtools("Input.insertText", json!({"text": "한"}));
    press_enter(229);
    assert_eq!(browser.eval("window.wasComposing"), false);
    assert_eq!(
        (num_turns(&browser), browser.eval("input.value")),
        (0, json!("한"))
    );
    press_enter(13);
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} p')"
    ));
    assert_eq!(browser.text_of(".user .body"), "한");
    assert_eq!(browser.text_of(LAST_ANSWER), "You asked: 한");
}

#[test]
fn text_of_the_model_is_shown_and_never_run() {
    let Some(browser) = browser("en-GB") else {
        return;
    };
    let server = TestServer::start();
    browser.open(&server.url);
    let bait =
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    ask(&browser, &format!("say {bait} `a < b`"));
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} code')"
    ));
    assert_eq!(browser.text_of(LAST_ANSWER), format!("{bait} a < b"));
    assert_eq!(
        browser.eval("list.querySelectorAll('img, script').length"),
        0
    );
    assert_eq!(browser.eval("document.title"), "scripted");

    // A block of code, made by Shift+Enter in the question.
    let line = format!("{SHIFT}{ENTER}{SHIFT}");
    ask(
        &browser,
        &["say first", "```rust", "let a = 1;", "```", "last"].join(&line),
    );
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} pre')"
    ));
    assert_eq!(browser.text_of(".answer:last-child pre"), "let a = 1;");
    let paragraphs =
        browser.eval("[...list.lastElementChild.querySelectorAll('p')].map(p => p.innerText)");
    assert_eq!(paragraphs, json!(["first", "last"]));
    let parts = format!("[...document.querySelectorAll('{LAST_ANSWER} *')]");
    let handlers = browser.eval(&format!(
        "{parts}.filter(e => e.getAttribute('style')).length"
    ));
    assert_eq!(
        (handlers, browser.console()),
        (json!(0), Vec::<String>::new())
    );
}

#[test]
fn the_page_fits_a_phone_and_follows_the_colours_of_its_reader() {
    let Some(browser) = browser("ko-KR") else {
        return;
    };
    let server = TestServer::start();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    browser.open(&server.url);
    browser.wait_for("document.querySelector('#examples button')");
    let background = |scheme: &str| {
        browser.set_colours(scheme);
        browser.eval("getComputedStyle(document.body).backgroundColor")
    };
    assert_ne!(background("dark"), background("light"));
    let is_wider = "[document.documentElement, scroller].some(e => e.scrollWidth > e.clientWidth)";
    browser.set_viewport(360, 740);
    assert_eq!(browser.eval("innerWidth"), 360);
    assert_eq!(
        browser.eval(is_wider),
        false,
        "the first view scrolls sideways"
    );
    let line = format!("{SHIFT}{ENTER}{SHIFT}");
    let long = "x".repeat(120);
    ask(
        &browser,
        &[
            "say 윤슬마을은 작은 바닷가 마을이에요.",
            &long,
            "```",
            &long,
            "```",
        ]
        .join(&line),
    );
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} pre')"
    ));
    assert_eq!(
        browser.eval(is_wider),
        false,
        "a long word makes the page scroll sideways"
    );
    browser.save_screenshot(&directory.join("page-phone.png"));
    browser.set_viewport(1200, 800);
    assert_eq!(browser.eval(is_wider), false);
    browser.save_screenshot(&directory.join("page-desktop.png"));
}

#[test]
fn what_goes_wrong_is_told_in_a_sentence_with_a_way_out() {
    let Some(browser) = browser("ko-KR") else {
        return;
    };
    let guarded = ServeConfig {
        api_keys: ApiKeys::parse("secret").unwrap(),
        ..config()
    };
    let engine = EngineConfig::default;
    let server = TestServer::start_with(guarded, factory(Gate::open(), engine()));
    browser.open(&server.url);
    ask(&browser, "say 열려라");
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('.problem input')"
    ));
    assert!(browser.text_of(".problem").contains("API 키"));
    browser.type_into(".problem input", &format!("secret{ENTER}"));
    browser.wait_for(&format!(
        "{IDLE} && document.querySelector('{LAST_ANSWER} p')"
    ));
    assert_eq!(
        (num_turns(&browser), browser.text_of(LAST_ANSWER)),
        (2, "열려라".to_owned())
    );

    // One runs, one waits, the next is too many.
    let gate = Gate::closed();
    let full = EngineConfig {
        max_num_seqs: 1,
        max_num_waiting: 1,
        ..engine()
    };
    let busy = TestServer::start_with(config(), factory(gate.clone(), full));
    browser.open(&busy.url);
    let mut first = busy.send("talk on", json!({"stream": true}));
    gate.allow(4);
    first.read_until("말");
    let second = busy.send("say b", json!({"stream": true}));
    busy.step_until(&gate, |load| load == (1, 1));
    ask(&browser, "say 됐다");
    let is_refused = (0..3000).any(|_| {
        gate.allow(1);
        !browser.eval("document.querySelector('.problem')").is_null()
    });
    assert!(is_refused, "the queue has room");
    assert!(
        browser
            .text_of(".problem")
            .contains("기다리는 요청이 너무 많아요")
    );
    drop((first, second));
    gate.allow(u64::MAX / 4);
    browser.wait_for(IDLE);
    let retry = || {
        browser.click(".problem button");
        browser.wait_for(&format!(
            "{IDLE} && document.querySelector('.problem, {LAST_ANSWER} p')"
        ));
        browser.text_of(LAST_ANSWER) == "됐다"
    };
    assert!((0..100).any(|_| retry()), "the queue stays full");
    assert_eq!(num_turns(&browser), 2);

    // The server goes away.
    drop(busy);
    ask(&browser, "say 거기 있나요?");
    browser.wait_for(&format!("{IDLE} && document.querySelector('.problem')"));
    assert!(browser.text_of(".problem").contains("서버에 닿지 않아요"));
    assert_eq!(browser.text_of(".problem button"), "다시 시도");
}
