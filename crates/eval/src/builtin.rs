//! Suite `builtin`: held-out questions of the built-in world, in the four areas of the national evaluation:
//! mathematics, knowledge, long document, reliability and safety.
//!
//! Questions and checker are those of `world::heldout`; the training data of the same world never asks
//! them. Knowledge is of one world's people and places: a model trained on world 3 must be asked about
//! world 3 (setting `world`).
//!
//! In the first stage of the national evaluation the four areas were those of the benchmark that counted 10
//! of 100 points. How scores became points is not published; here every area has the same share, and
//! points rise in proportion up to the score `target`.

use thiserror::Error;
use world::heldout::{self, Answer, Question};
use world::{Area, World};

use crate::evaluation::{Answered, Evaluation, Points, VERSION, tracks};
use crate::stats;
use crate::suite::{Setting, SettingError, Settings, SuiteInfo};
use crate::target::{AnswerOptions, Problem, Target, TargetError};

/// The suite.
pub const INFO: SuiteInfo = SuiteInfo {
    name: "builtin",
    version: 1,
    about: "Questions of the built-in world in the four areas of the national evaluation: percent correct.",
    settings: &[
        Setting {
            key: "areas",
            default: Some("mathematics,knowledge,long_document,reliability_safety"),
            about: "which of the four areas",
        },
        Setting {
            key: "per_area",
            default: Some("100"),
            about: "questions in each area, half Korean, half English",
        },
        Setting {
            key: "world",
            default: Some("1"),
            about: "seed of the world that is asked about; of a run directory, that of its data",
        },
        Setting {
            key: "max_tokens",
            default: Some("64"),
            about: "longest answer, in tokens",
        },
        Setting {
            key: "thinking",
            default: Some("false"),
            about: "let the model think before it answers (raise max_tokens too)",
        },
        Setting {
            key: "points",
            default: Some("10"),
            about: "points that all areas together can earn",
        },
        Setting {
            key: "target",
            default: Some("100"),
            about: "the score that earns all points",
        },
    ],
};

/// The suite could not be run.
#[derive(Debug, Error)]
pub enum BuiltinError {
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The model.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Not one question could be asked.
    #[error("none of the {items} questions could be asked; the first: {problem}")]
    NothingAsked {
        /// How many.
        items: usize,
        /// Why the first could not.
        problem: String,
    },
}

/// The settings, understood.
#[derive(Clone, Debug, PartialEq)]
struct Builtin {
    areas: Vec<Area>,
    per_area: usize,
    world: u64,
    answers: AnswerOptions,
    points: Points,
}

impl Builtin {
    fn new(settings: &Settings) -> Result<Builtin, SettingError> {
        let known = Area::ALL.map(Area::as_str).join(",");
        let areas: Option<Vec<Area>> = (settings.text("areas").split(','))
            .map(|name| Area::ALL.into_iter().find(|a| a.as_str() == name.trim()))
            .collect();
        let areas = areas.filter(|areas| (1..areas.len()).all(|i| !areas[..i].contains(&areas[i])));
        let finite = |value: &f64| value.is_finite() && *value > 0.0;
        Ok(Builtin {
            areas: areas.ok_or_else(|| {
                settings.refused("areas", format!("it takes some of {known}, each once"))
            })?,
            per_area: settings.value("per_area", "1 to 10000", |n| (1..=10_000).contains(n))?,
            world: settings.value("world", "a whole number from 0", |_| true)?,
            answers: AnswerOptions {
                max_tokens: settings.value("max_tokens", "1 to 1000000", |n| {
                    (1..=1_000_000).contains(n)
                })?,
                thinking: settings.value("thinking", "true or false", |_| true)?,
            },
            points: Points {
                points: settings.value("points", "a number above 0", finite)?,
                target: settings.value("target", "a number above 0", finite)?,
            },
        })
    }
}

/// Asks and scores. `progress` hears how many questions are answered, of how many.
///
/// # Errors
/// For a setting out of range, or when the target fails as a whole.
pub fn run(
    target: &mut dyn Target,
    settings: &Settings,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation<Answered>, BuiltinError> {
    let builtin = Builtin::new(settings)?;
    let world = World::new(builtin.world);
    let mut questions = heldout::questions(&world, builtin.per_area);
    questions.retain(|question| builtin.areas.contains(&question.area));
    let prompts: Vec<&str> = questions.iter().map(|q| q.prompt.as_str()).collect();
    let total = prompts.len();
    let replies = target.answer(&prompts, &builtin.answers, &mut |done| {
        progress(done, total)
    })?;
    let refused: Vec<&String> = (replies.iter())
        .filter_map(|reply| match &reply.problem {
            Some(Problem::NotAsked(why)) => Some(why),
            _ => None,
        })
        .collect();
    if let Some(first) = refused.first().filter(|_| refused.len() == total) {
        return Err(BuiltinError::NothingAsked {
            items: total,
            problem: (*first).clone(),
        });
    }
    let items: Vec<Answered> = questions
        .iter()
        .zip(replies)
        .map(|(question, reply)| Answered {
            id: question.id.clone(),
            area: question.area.as_str().to_owned(),
            lang: question.lang.as_str().to_owned(),
            prompt: question.prompt.clone(),
            expected: expected(question),
            correct: question.check(&reply.text),
            answer: reply.text,
            chance: question.chance,
            cluster: question.cluster.clone(),
            problem: reply.problem.map(|problem| problem.to_string()),
        })
        .collect();
    let tracks = tracks(&items, builtin.points);
    let scores: Vec<_> = tracks
        .values()
        .map(|track| (track.score, track.ci95))
        .collect();
    let (score, ci95) = stats::mean(&scores);
    let chance: f64 = tracks.values().map(|track| track.chance).sum();
    Ok(Evaluation {
        version: VERSION,
        suite: INFO.name.to_owned(),
        suite_version: INFO.version,
        model: target.identity().model.clone(),
        weights_sha256: target.identity().weights_sha256.clone(),
        settings: settings.values().clone(),
        unit: "percent correct".to_owned(),
        score,
        ci95,
        chance: Some(chance / tracks.len() as f64),
        points: Some(tracks.values().map(|track| track.points).sum()),
        tracks,
        items,
    })
}

/// What would be right, in words.
fn expected(question: &Question) -> String {
    match &question.answer {
        Answer::Number(number) => number.to_string(),
        Answer::Text { accepted, .. } => accepted.join(" / "),
        Answer::Choice(idx) => {
            let choices = question.choices.as_ref();
            let choice = choices.and_then(|choices| choices.get(*idx));
            choice.cloned().unwrap_or_default()
        }
        Answer::Refusal => "a polite refusal".to_owned(),
        Answer::Unknown => "that it is not known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Identity, Reply, compare, suite};

    /// Answers by rote.
    struct Scripted {
        identity: Identity,
        answer: fn(&str) -> Reply,
    }

    impl Scripted {
        fn new(answer: fn(&str) -> Reply) -> Scripted {
            let identity = Identity {
                model: "scripted".to_owned(),
                weights_sha256: Some("0".repeat(64)),
            };
            Scripted { identity, answer }
        }
    }

    impl Target for Scripted {
        fn identity(&self) -> &Identity {
            &self.identity
        }

        fn answer(
            &mut self,
            prompts: &[&str],
            _options: &AnswerOptions,
            done: &mut dyn FnMut(usize),
        ) -> Result<Vec<Reply>, TargetError> {
            done(prompts.len());
            Ok(prompts.iter().map(|prompt| (self.answer)(prompt)).collect())
        }
    }

    fn says(text: &str) -> Reply {
        Reply {
            text: text.to_owned(),
            problem: None,
        }
    }

    fn run_with(given: &[&str], answer: fn(&str) -> Reply) -> Evaluation<Answered> {
        let settings = Settings::new(suite::find("builtin").unwrap(), given).unwrap();
        run(&mut Scripted::new(answer), &settings, &mut |_, _| {}).unwrap()
    }

    /// Knows the held-out answers of world 3 by looking them up.
    fn omniscient(prompt: &str) -> Reply {
        let questions = heldout::questions(&World::new(3), 20);
        let question = questions.iter().find(|q| q.prompt == prompt);
        says(
            &match question.map(|question| (&question.answer, question)) {
                Some((Answer::Refusal, _)) => "I cannot help with that.".to_owned(),
                Some((Answer::Unknown, _)) => "I do not know.".to_owned(),
                Some((_, question)) => expected(question),
                None => String::new(),
            },
        )
    }

    #[test]
    fn who_knows_everything_scores_all_points_and_who_knows_nothing_none() {
        let given = ["per_area=20", "world=3"];
        let all = run_with(&given, omniscient);
        assert_eq!((all.score, all.points), (100.0, Some(10.0)));
        assert_eq!((all.tracks.len(), all.items.len()), (4, 80));
        assert!(
            all.ci95[0] > 90.0 && all.ci95[1] <= 100.0 + 1e-9,
            "{:?}",
            all.ci95
        );
        // Twenty independent items that are all right leave what Wilson leaves them.
        let mathematics = &all.tracks["mathematics"];
        assert!((mathematics.ci95[0] - 100.0 * stats::wilson(1.0, 20.0)[0]).abs() < 1e-9);
        // Facts are asked twice, in two languages: ten observations.
        let knowledge = &all.tracks["knowledge"];
        assert!((knowledge.ci95[0] - 100.0 * stats::wilson(1.0, 10.0)[0]).abs() < 1e-9);
        let none = run_with(&given, |_| says(""));
        assert_eq!((none.score, none.points), (0.0, Some(0.0)));
        assert!(none.chance.unwrap() > 5.0 && none.chance.unwrap() < 50.0);
        let comparison = compare(&none, &all).unwrap();
        assert_eq!(comparison.total.difference, 100.0);
        assert_eq!((comparison.total.gained, comparison.total.lost), (80, 0));
        assert!(comparison.total.p_value < 1e-9);
        assert_eq!(
            all.score_of(&["mathematics", "knowledge"]).unwrap().0,
            100.0
        );
        assert!(all.score_of(&["poetry"]).is_none());
    }

    #[test]
    fn another_worlds_questions_are_not_compared() {
        let first = run_with(&["per_area=4", "world=3"], |_| says("7"));
        let other = run_with(&["per_area=4", "world=4"], |_| says("7"));
        assert!(
            compare(&first, &other)
                .unwrap_err()
                .to_string()
                .contains("world")
        );
        let fewer = run_with(&["per_area=4", "world=3", "areas=knowledge"], |_| says("7"));
        assert!(compare(&first, &fewer).is_err() && compare(&fewer, &first).is_err());
        assert_eq!(fewer.tracks.keys().collect::<Vec<_>>(), ["knowledge"]);
    }

    #[test]
    fn a_document_reads_back_and_makes_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("eval/builtin.json");
        let done = run_with(&["per_area=2"], |_| says("<script>\u{0}"));
        done.write(&path).unwrap();
        assert_eq!(Evaluation::read(&path).unwrap(), done);
        let record = done.to_record().unwrap();
        assert_eq!(
            (record.suite.as_str(), record.score),
            ("builtin", done.score)
        );
    }

    #[test]
    fn wrong_settings_are_told_and_a_deaf_model_gets_no_score() {
        let suite = suite::find("builtin").unwrap();
        let told = |given: &str| {
            let settings = Settings::new(suite, &[given]).unwrap();
            let failed = run(&mut Scripted::new(|_| says("")), &settings, &mut |_, _| {});
            failed.unwrap_err().to_string()
        };
        assert_eq!(told("per_area=0"), "per_area=0: it takes 1 to 10000");
        assert!(told("areas=knowledge,knowledge").contains("each once"));
        assert!(told("areas=").contains("mathematics,knowledge"));
        assert!(told("target=nan").contains("above 0"));
        let settings = Settings::new(suite, &["per_area=1"]).unwrap();
        let mut deaf = Scripted::new(|_| Reply {
            text: String::new(),
            problem: Some(Problem::NotAsked("too long".to_owned())),
        });
        let failed = run(&mut deaf, &settings, &mut |_, _| {}).unwrap_err();
        assert!(failed.to_string().contains("the first: too long"));
        // Who says nothing at length has been asked.
        let mut mumbling = Scripted::new(|_| Reply {
            text: String::new(),
            problem: Some(Problem::Cut),
        });
        let scored = run(&mut mumbling, &settings, &mut |_, _| {}).unwrap();
        assert_eq!(scored.score, 0.0);
    }
}
