//! The text of an HTML page as a reader sees it, and the language it declares.
//!
//! Parsed as browsers do (html5ever through scraper). Left out: scripts, styles, forms, navigation,
//! page headers and footers, embedded objects. Block elements end lines, paragraphs leave a gap; white
//! space collapses outside `pre`. A page is refused when its elements could be nested deeper than
//! [`MAX_DEPTH`]: the tree builder looks upward at each tag, so that its time would grow with the square.

use ego_tree::iter::Edge;
use scraper::{Html, Node};

const MAX_DEPTH: usize = 2000;

/// Elements whose end tag is optional or absent: many unclosed ones do not mean deep nesting.
const OPTIONAL_END: [&str; 29] = [
    "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "optgroup", "rt",
    "rp", "colgroup", "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta",
    "param", "source", "track", "wbr",
];

const LEFT_OUT: [&str; 16] = [
    "script", "style", "noscript", "template", "nav", "footer", "aside", "form", "button",
    "select", "svg", "math", "iframe", "object", "head", "textarea",
];

const PARAGRAPHS: [&str; 16] = [
    "p",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "pre",
    "ul",
    "ol",
    "dl",
    "table",
    "blockquote",
    "section",
    "article",
    "figure",
];

const LINES: [&str; 10] = [
    "div", "li", "dt", "dd", "tr", "br", "hr", "main", "header", "caption",
];

/// Text and declared language (empty if none); `None` if the nesting is absurd.
pub(super) fn text(html: &str) -> Option<(String, String)> {
    if possible_depth(html) > MAX_DEPTH {
        return None;
    }
    let page = Html::parse_document(html);
    let lang = page
        .root_element()
        .value()
        .attr("lang")
        .unwrap_or_default()
        .to_owned();
    let mut out = String::with_capacity(html.len() / 2);
    let mut left_out = 0usize;
    let mut preformatted = 0usize;
    // By edges, not by recursion: depth costs no stack.
    for edge in page.tree.root().traverse() {
        match edge {
            Edge::Open(node) => match node.value() {
                Node::Element(element) => {
                    let name = element.name();
                    left_out += usize::from(LEFT_OUT.contains(&name));
                    preformatted += usize::from(name == "pre");
                    if left_out == 0 {
                        begin_block(&mut out, name);
                        if name == "li" {
                            out.push_str("- ");
                        }
                    }
                }
                Node::Text(words) if left_out == 0 => {
                    if preformatted > 0 {
                        out.push_str(words);
                    } else {
                        push_collapsed(&mut out, words);
                    }
                }
                _ => {}
            },
            Edge::Close(node) => {
                if let Node::Element(element) = node.value() {
                    let name = element.name();
                    left_out -= usize::from(LEFT_OUT.contains(&name));
                    preformatted -= usize::from(name == "pre");
                    if left_out == 0 {
                        begin_block(&mut out, name);
                        if matches!(name, "td" | "th") {
                            out.push('\t');
                        }
                    }
                }
            }
        }
    }
    Some((out, lang))
}

/// Ends the line, or the paragraph, at the border of a block element.
fn begin_block(out: &mut String, name: &str) {
    let ends = if PARAGRAPHS.contains(&name) {
        "\n\n"
    } else if LINES.contains(&name) {
        "\n"
    } else {
        return;
    };
    while !out.is_empty() && !out.ends_with(ends) {
        out.push('\n');
    }
}

fn push_collapsed(out: &mut String, words: &str) {
    for c in words.chars() {
        if !c.is_ascii_whitespace() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with([' ', '\n', '\t']) {
            out.push(' ');
        }
    }
}

/// An upper bound on open elements whose end tags are not optional.
fn possible_depth(html: &str) -> usize {
    let bytes = html.as_bytes();
    let (mut open, mut deepest) = (0usize, 0usize);
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|&b| b == b'<') {
        at += found + 1;
        let closes = bytes.get(at) == Some(&b'/');
        let start = at + usize::from(closes);
        let len = bytes[start..]
            .iter()
            .take(16)
            .take_while(|b| b.is_ascii_alphanumeric())
            .count();
        if len == 0 {
            continue;
        }
        let name = html[start..start + len].to_ascii_lowercase();
        if !OPTIONAL_END.contains(&name.as_str()) {
            // An end tag that closes nothing must not hide what is open.
            open = if closes {
                open.saturating_sub(1)
            } else {
                open + 1
            };
            deepest = deepest.max(open);
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalise;
    use proptest::prelude::*;

    #[test]
    fn the_words_stay_and_the_page_goes() {
        let page = "<!doctype html><html lang=ko><head><title>t</title><style>p{}</style></head>\
                    <body><nav>menu</nav><h1>항구</h1><p>The old\n <b>pier</b> &amp; sea.<p>Next\
                    <ul><li>one<li>two</ul><pre>a\n  b</pre><script>alert(1)</script>\
                    <table><tr><td>1<td>2</table><footer>foot</footer></body></html>";
        let (words, lang) = text(page).unwrap();
        assert_eq!(lang, "ko");
        assert_eq!(
            normalise(&words),
            "항구\n\nThe old pier & sea.\n\nNext\n\n- one\n- two\n\na\n  b\n\n1\t2"
        );
    }

    #[test]
    fn absurd_nesting_is_refused_quickly() {
        assert!(text(&"<div>".repeat(100_000)).is_none());
        assert!(text(&"<p>x".repeat(5_000)).is_some());
        assert!(text(&"<div>x</div>".repeat(5_000)).is_some());
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in "(<|</|>|div|p|li|pre|nav|table|td|script| |x|가|&lt;|&#|\"|=|!--){0,80}") {
            text(&page);
        }
    }
}
