//! The page of a run: whole, partly there, and hostile.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fake_run;

use dokja_report::{ReportError, render, write};
use eval::{Answered, Evaluation};
use formats::run_dir::{RunDir, Stage};

fn whole() -> (tempfile::TempDir, RunDir) {
    let dir = tempfile::tempdir().unwrap();
    let run = fake_run::write(dir.path());
    (dir, run)
}

const HEADINGS: [&str; 8] = [
    "What it can do",
    "In its own words",
    "Learning to predict",
    "Learning to answer",
    "Who does the work",
    "Where it comes from",
    "The record",
    "Left out",
];

fn headings(page: &str) -> Vec<&'static str> {
    let shown = |h: &&str| page.contains(&format!("<h2>{h}</h2>"));
    HEADINGS.into_iter().filter(shown).collect()
}

#[test]
fn a_whole_run_shows_every_part_and_loads_nothing() {
    let (_dir, run) = whole();
    let path = write(&run).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert_eq!(headings(&page), HEADINGS[..7]);
    assert!(page.contains("random start") && page.contains("after instruction tuning"));
    assert!(page.contains("guessing among 4,096 tokens: 8.32"));
    for word in [
        "NaN", "Infinity", " src=", "@import", "url(", "fetch(", "href=",
    ] {
        assert!(!page.contains(word), "{word}");
    }
    let addresses = page.matches("http").count();
    let of_svg =
        page.matches("http://www.w3.org/2000/svg").count() + page.matches("http-equiv").count();
    assert_eq!(addresses, of_svg);
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
    // Rendering is a function of the files.
    assert_eq!(render(&run).unwrap(), page);
}

#[test]
fn a_run_that_learned_from_its_own_answers_shows_their_reward() {
    let (_dir, run) = whole();
    fake_run::rl(&run);
    let page = render(&run).unwrap();
    assert!(page.contains("<h2>Learning from its own answers</h2>"));
    assert!(page.contains("from 0.500 to 0.900 (means of a tenth of the steps) over 40 steps"));
    assert!(page.contains(", reinforced for 40"));
    assert!(!page.contains("NaN"));
}

#[test]
fn what_is_not_there_yet_is_left_out() {
    let (_dir, run) = whole();
    std::fs::remove_file(run.certificate()).unwrap();
    std::fs::remove_dir_all(run.stage(Stage::Sft)).unwrap();
    std::fs::remove_dir_all(run.root().join("eval")).unwrap();
    let page = render(&run).unwrap();
    assert_eq!(
        headings(&page),
        ["Learning to predict", "Who does the work", "The record"]
    );
    std::fs::remove_dir_all(run.stage(Stage::Pretrain)).unwrap();
    assert_eq!(headings(&render(&run).unwrap()), ["The record"]);
    std::fs::remove_file(run.ledger()).unwrap();
    let failed = render(&run).unwrap_err();
    assert!(matches!(&failed, ReportError::NoRun { .. }));
    assert!(failed.to_string().contains("give a run directory"));
}

#[test]
fn hostile_answers_stay_text() {
    let (_dir, run) = whole();
    let path = run.eval("builtin-final");
    let mut result = Evaluation::<Answered>::read(&path).unwrap();
    let attack =
        "</dd></article></main><script>alert('x')</script><img src=x onerror=\"y\">\u{202e}\u{0}";
    for item in &mut result.items {
        item.answer = attack.to_owned();
        item.prompt = format!("{attack}{}", item.prompt);
        item.expected = attack.to_owned();
        item.problem = Some(attack.to_owned());
        item.lang = "en\" onclick=\"z".to_owned();
    }
    result.model = attack.to_owned();
    result
        .settings
        .insert("points".to_owned(), attack.to_owned());
    let area = result.tracks.remove("knowledge").unwrap();
    result.tracks.insert(attack.to_owned(), area);
    result.write(&path).unwrap();
    let page = render(&run).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    for word in ["<img", "onerror=\"", "onclick=\"", "\u{202e}", "\u{0}"] {
        assert!(!page.contains(word), "{word}");
    }
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)"));
}

#[test]
fn unreadable_files_are_told_and_the_rest_is_shown() {
    let (_dir, run) = whole();
    std::fs::write(run.eval("builtin-final"), "{\"unit\": \"percent correct\"").unwrap();
    std::fs::write(run.eval("other"), "{\"unit\": \"bananas\"}").unwrap();
    std::fs::write(run.certificate(), "[]").unwrap();
    let metrics = run.metrics(Stage::Sft);
    std::fs::write(&metrics, "{\"step\": 1}\n").unwrap();
    let page = render(&run).unwrap();
    let shown = headings(&page);
    assert!(shown.contains(&"Left out") && shown.contains(&"What it can do"));
    assert!(!shown.contains(&"Where it comes from") && !shown.contains(&"Learning to answer"));
    for name in [
        "builtin-final.json",
        "other.json",
        "certificate.json",
        "metrics.jsonl",
    ] {
        assert!(page.contains(name), "{name}");
    }
}

#[test]
fn a_run_that_diverged_or_has_one_step_is_drawn() {
    let (_dir, run) = whole();
    let text = std::fs::read_to_string(run.metrics(Stage::Pretrain)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(run.metrics(Stage::Pretrain), format!("{}\n", lines[0])).unwrap();
    assert!(headings(&render(&run).unwrap()).contains(&"Learning to predict"));
    let diverged = lines[5].replace(&lines[5][lines[5].find("\"loss\"").unwrap()..], "");
    let diverged = format!(
        "{diverged}\"loss\":null,\"next_token_loss\":null,\"mtp_loss\":null,\"balance_loss\":null,\"lr\":null,\
         \"grad_norm\":null,\"tokens_per_sec\":null}}"
    );
    let all = format!("{}\n{diverged}\n{diverged}\n", lines[..5].join("\n"));
    std::fs::write(run.metrics(Stage::Pretrain), all).unwrap();
    let page = render(&run).unwrap();
    assert!(headings(&page).contains(&"Learning to predict"), "{page}");
    assert!(!page.contains("NaN"));
}

#[test]
fn a_broken_certificate_says_where() {
    let (_dir, run) = whole();
    fake_run::certificate(&run, "broken", "failed");
    let page = render(&run).unwrap();
    assert!(page.contains("<strong class=\"verdict broken\">broken</strong>"));
    assert!(page.contains("record 9: weights lead back to the record before"));
    assert_eq!(page.matches("class=\"link failed\"").count(), 2);
}
