//! The text of a Markdown page: words, lists, tables and code, without the markup.
//!
//! Links leave their text, images their description, embedded HTML and front matter nothing.
//! Grammar: CommonMark with tables, strike-through and front matter, as pulldown-cmark reads it.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

pub(super) fn text(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut out = String::with_capacity(markdown.len());
    let mut in_metadata = false;
    let mut lists: Vec<Option<u64>> = Vec::new();
    for event in Parser::new_ext(markdown, options) {
        match event {
            Event::Start(Tag::MetadataBlock(_)) => in_metadata = true,
            Event::End(TagEnd::MetadataBlock(_)) => in_metadata = false,
            Event::Text(_) if in_metadata => {}
            Event::Text(words) | Event::Code(words) => out.push_str(&words),
            Event::SoftBreak => out.push(' '),
            Event::HardBreak => out.push('\n'),
            Event::Start(Tag::List(first)) => {
                line_end(&mut out);
                lists.push(first);
            }
            Event::End(TagEnd::List(_)) => {
                lists.pop();
                if lists.is_empty() {
                    block_end(&mut out);
                }
            }
            Event::Start(Tag::Item) => {
                line_end(&mut out);
                // Deep nesting is flattened so that hostile nesting cannot square the output.
                out.push_str(&"  ".repeat(lists.len().saturating_sub(1).min(8)));
                match lists.last_mut() {
                    Some(Some(number)) => {
                        out.push_str(&format!("{number}. "));
                        *number = number.saturating_add(1);
                    }
                    _ => out.push_str("- "),
                }
            }
            Event::End(TagEnd::Item) => line_end(&mut out),
            Event::End(TagEnd::Paragraph) if !lists.is_empty() => line_end(&mut out),
            Event::End(TagEnd::TableCell) => out.push('\t'),
            Event::End(TagEnd::TableRow | TagEnd::TableHead) => line_end(&mut out),
            Event::End(
                TagEnd::Paragraph
                | TagEnd::Heading(_)
                | TagEnd::CodeBlock
                | TagEnd::BlockQuote(_)
                | TagEnd::Table,
            )
            | Event::Rule => block_end(&mut out),
            _ => {}
        }
    }
    out
}

fn line_end(out: &mut String) {
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
}

fn block_end(out: &mut String) {
    line_end(out);
    if !out.is_empty() && !out.ends_with("\n\n") {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise;
    use proptest::prelude::*;

    #[test]
    fn the_words_stay_and_the_markup_goes() {
        let page = "---\ntitle: x\n---\n# Harbour\n\nThe *old* [pier](http://x.y) is\nlong.\n\n\
                    - one\n- `two`\n  1. three\n  2. four\n\n```rust\nlet a = 1;\n```\n\n\
                    | a | b |\n|---|---|\n| 1 | 2 |\n\n<b>bold</b> end\n";
        assert_eq!(
            normalise(&text(page)),
            "Harbour\n\nThe old pier is long.\n\n- one\n- two\n  1. three\n  2. four\n\n\
             let a = 1;\n\na\tb\n1\t2\n\nbold end"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read(page in "[-#*_`>|\\[\\]() \n0-9a-c가<&;!]{0,200}") {
            text(&page);
        }
    }
}
