//! Reads a great deal of training text and looks for anything that held-out questions ask.

use std::collections::{HashMap, HashSet};

use dokja_world::{Area, Document, Lang, Role, World, heldout};

const SEED: u64 = 1;
const BYTES: u64 = 4_000_000;
const DIALOGUES: usize = 8_000;

fn documents(world: &World) -> Vec<Document> {
    world.documents(SEED, BYTES).collect()
}

/// Every line of every training text, documents and messages of dialogues.
fn training_lines(world: &World) -> Vec<String> {
    let dialogues = world.training_dialogues(SEED, DIALOGUES);
    let messages = dialogues
        .into_iter()
        .flat_map(|d| d.messages)
        .map(|(_, text)| text);
    documents(world)
        .into_iter()
        .map(|document| document.text)
        .chain(messages)
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The integers of a text with the bytes between each and the next.
fn numbers(text: &str) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        if let Some((_, between)) = found.last_mut() {
            *between = rest[..start].to_owned();
        }
        rest = &rest[start..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        found.push((rest[..end].parse().expect("a run of digits"), String::new()));
        rest = &rest[end..];
    }
    found
}

/// The pairs on which written equations rest, wherever an operator stands between two numbers.
fn operator_pairs(text: &str) -> Vec<(u32, u32)> {
    let numbers = numbers(text);
    let mut pairs = Vec::new();
    for window in numbers.windows(2) {
        let ((a, between), (b, _)) = (&window[0], &window[1]);
        match between.trim() {
            "+" | "×" => pairs.push((*a, *b)),
            "-" if a >= b => pairs.push((*b, a - b)),
            _ => {}
        }
    }
    pairs
}

/// In a line that poses a problem the first two numbers below a hundred are its operands: the pair is
/// tried as a sum or product and as a difference.
fn posed_pairs(line: &str) -> Vec<(u32, u32)> {
    match numbers(line).as_slice() {
        [(a, _), (b, _), ..] if *a < 100 && *b < 100 => {
            let unless_sum = asks_for_difference(line);
            if unless_sum {
                vec![(*b, a.abs_diff(*b))]
            } else {
                vec![(*a, *b)]
            }
        }
        _ => Vec::new(),
    }
}

fn asks_for_difference(line: &str) -> bool {
    [
        " - ",
        "주었어요",
        "꺼냈어요",
        "더 모았나요",
        "gave",
        "took out",
        "more {t}",
        "How many more",
    ]
    .iter()
    .any(|mark| line.contains(mark))
}

#[test]
fn no_training_text_holds_a_problem_of_a_held_out_pair() {
    let world = World::new(SEED);
    let mut equations = 0;
    for line in training_lines(&world) {
        for (a, b) in operator_pairs(&line) {
            equations += 1;
            assert!(!world.pair_is_held_out(a, b), "({a}, {b}) in {line:?}");
        }
    }
    assert!(
        equations > 20_000,
        "the scan found only {equations} equations"
    );

    let mut posed = 0;
    let of_documents = documents(&world)
        .into_iter()
        .filter(|document| document.source == "world/mathematics")
        .flat_map(|document| document.text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.starts_with("답:") && !line.starts_with("A:"));
    let of_dialogues = world
        .training_dialogues(SEED, DIALOGUES)
        .into_iter()
        .filter(|dialogue| dialogue.area != Area::LongDocument)
        .flat_map(|dialogue| dialogue.messages)
        .filter(|(role, _)| *role == Role::User)
        .map(|(_, text)| text)
        // Choices of a knowledge question may be months or years.
        .filter(|text| !text.contains("보기:") && !text.contains("Choose one:"));
    for line in of_documents.chain(of_dialogues) {
        for (a, b) in posed_pairs(&line) {
            posed += 1;
            assert!(
                !world.pair_is_held_out(a, b),
                "({a}, {b}) posed in {line:?}"
            );
        }
    }
    assert!(posed > 10_000, "the scan found only {posed} problems");
}

#[test]
fn held_out_problems_are_of_held_out_pairs() {
    let world = World::new(SEED);
    for question in heldout::questions(&world, 200) {
        if question.area == Area::Mathematics {
            let pairs = posed_pairs(&question.prompt);
            assert_eq!(pairs.len(), 1, "{}", question.prompt);
            let (a, b) = pairs[0];
            assert!(world.pair_is_held_out(a, b), "{}", question.prompt);
        }
    }
}

#[test]
fn no_training_text_asks_for_a_held_out_fact() {
    let world = World::new(SEED);
    let lines = training_lines(&world);
    let held_out: HashSet<String> = world
        .facts()
        .iter()
        .filter(|fact| fact.held_out)
        .flat_map(|fact| Lang::ALL.map(|lang| fact.questions(lang)))
        .flatten()
        .collect();
    let asked: HashSet<String> = world
        .facts()
        .iter()
        .filter(|fact| !fact.held_out)
        .flat_map(|fact| Lang::ALL.map(|lang| fact.questions(lang)))
        .flatten()
        .collect();
    assert!(held_out.is_disjoint(&asked));
    let mut found = HashSet::new();
    for line in &lines {
        let line = line.trim_start_matches("문: ").trim_start_matches("Q: ");
        let question = line.split(" 보기: ").next().unwrap_or(line);
        let question = question.split(" Choose one: ").next().unwrap_or(question);
        assert!(!held_out.contains(question), "{line}");
        if let Some(known) = asked.get(question) {
            found.insert(known);
        }
    }
    // The scan sees questions: almost every wording of every training question turns up.
    assert!(
        found.len() * 10 > asked.len() * 9,
        "{} of {}",
        found.len(),
        asked.len()
    );
}

#[test]
fn no_held_out_prompt_is_a_training_text() {
    let world = World::new(SEED);
    let lines: HashSet<String> = training_lines(&world).into_iter().collect();
    for question in heldout::questions(&world, 300) {
        let lines_of_prompt: Vec<&str> = question.prompt.lines().collect();
        // Of a prompt with a passage, the passage is what must be new.
        let new = if lines_of_prompt.len() == 3 {
            lines_of_prompt[1]
        } else {
            &question.prompt
        };
        for form in [new.to_owned(), format!("문: {new}"), format!("Q: {new}")] {
            assert!(!lines.contains(&form), "{form}");
        }
    }
}

#[test]
fn every_fact_is_stated_often_in_both_languages() {
    let world = World::new(SEED);
    for lang in Lang::ALL {
        let text: String = documents(&world)
            .into_iter()
            .filter(|document| document.lang == lang)
            .map(|document| document.text + "\n")
            .collect();
        for fact in world.facts() {
            let statements: HashSet<String> = fact.statements(lang).into_iter().collect();
            let times: usize = statements
                .iter()
                .map(|s| text.matches(s.as_str()).count())
                .sum();
            assert!(times >= 15, "{times} times {:?}", fact.answer(lang));
            assert!(text.contains(&fact.answer(lang)), "{:?}", fact.answer(lang));
        }
    }
}

#[test]
fn documents_are_a_function_of_the_seed() {
    let world = World::new(SEED);
    let first: Vec<Document> = world.documents(9, 100_000).collect();
    assert_eq!(first, world.documents(9, 100_000).collect::<Vec<_>>());
    assert_ne!(first, world.documents(10, 100_000).collect::<Vec<_>>());
    assert_eq!(
        world.training_dialogues(9, 50),
        world.training_dialogues(9, 50)
    );
    let bytes: usize = first.iter().map(|document| document.text.len()).sum();
    assert!((100_000..110_000).contains(&bytes));
}

#[test]
fn a_longer_budget_continues_the_same_documents() {
    let world = World::new(SEED);
    let short: Vec<Document> = world.documents(9, 50_000).collect();
    let long: Vec<Document> = world.documents(9, 100_000).collect();
    assert_eq!(short[..], long[..short.len()]);
}

#[test]
fn particles_agree_with_the_words_before_them() {
    let world = World::new(SEED);
    // Words of the world, each with the particles that would be wrong behind it.
    let mut wrong: HashMap<String, Vec<&str>> = HashMap::new();
    for fact in world.facts() {
        for word in [fact.name.ko.to_owned(), fact.value.text(Lang::Korean)] {
            if word.chars().all(|c| c.is_ascii_digit()) {
                continue;
            }
            let last = u32::from(word.chars().next_back().unwrap());
            let particles = if (last - 0xAC00).is_multiple_of(28) {
                vec![
                    "은 ",
                    "을 ",
                    "이 ",
                    "과 ",
                    "으로 ",
                    "이다.",
                    "이에요.",
                    "이라고 ",
                ]
            } else {
                vec!["는 ", "를 ", "가 ", "와 ", "다.", "예요.", "라고 "]
            };
            wrong.insert(word, particles);
        }
    }
    let text: String = documents(&world)
        .into_iter()
        .filter(|document| document.lang == Lang::Korean)
        .take(6_000)
        .map(|document| document.text + "\n")
        .collect();
    for (word, particles) in &wrong {
        for particle in particles {
            let bad = format!(" {word}{particle}");
            assert!(!text.contains(&bad), "{bad:?}");
        }
    }
}

#[test]
fn training_answers_are_right_by_the_checker_and_each_others_wrong() {
    let world = World::new(SEED);
    for question in heldout::questions(&world, 100) {
        if question.area != Area::Knowledge {
            continue;
        }
        let fact = world
            .facts()
            .iter()
            .find(|fact| {
                let start = question.prompt.split(" 보기: ").next().unwrap_or_default();
                let start = start.split(" Choose one: ").next().unwrap_or_default();
                fact.questions(question.lang).iter().any(|q| q == start)
            })
            .expect("a knowledge question asks for a fact");
        assert!(fact.held_out);
        assert!(
            question.check(&fact.answer(question.lang)),
            "{}",
            question.prompt
        );
        let other = world
            .facts()
            .iter()
            .find(|other| other.attribute == fact.attribute && other.value != fact.value)
            .expect("each attribute has several values");
        assert!(
            !question.check(&other.answer(question.lang)),
            "{}",
            question.prompt
        );
        let both = format!(
            "{} {}",
            other.answer(question.lang),
            fact.answer(question.lang)
        );
        let is_year = matches!(question.answer, heldout::Answer::Number(_));
        let among = question
            .choices
            .as_ref()
            .is_none_or(|choices| choices.contains(&other.value.text(question.lang)));
        assert!(is_year || !among || !question.check(&both), "{both}");
    }
}
