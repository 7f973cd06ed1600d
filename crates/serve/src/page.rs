//! The chat page: one file, sent with a policy that lets nothing else run in it.
//!
//! The policy names the style and the script of the page by their hashes, so that no text that finds
//! its way into the page could ever be executed, and lets the page talk to this server only.

use serde_json::json;
use sha2::{Digest, Sha256};

/// Questions that the page offers before the first message, by the language of its reader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// For readers of Korean.
    pub ko: Vec<String>,
    /// For all others.
    pub en: Vec<String>,
}

/// The page as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) html: String,
    pub(crate) policy: String,
}

const SOURCE: &str = include_str!("chat.html");

impl Page {
    pub(crate) fn new(model: &str, examples: &Examples) -> Page {
        let settings = json!({"model": model, "examples": {"ko": examples.ko, "en": examples.en}});
        // In a script element only `<` could end it.
        let settings = settings.to_string().replace('<', "\\u003c");
        let [style, script] =
            [("<style>", "</style>"), ("<script>", "</script>")].map(|(open, close)| {
                let inner = SOURCE
                    .split_once(open)
                    .and_then(|(_, rest)| rest.split_once(close));
                base64(&Sha256::digest(inner.map_or("", |(inner, _)| inner)))
            });
        Page {
            html: SOURCE.replacen("{{settings}}", &settings, 1),
            policy: format!(
                "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; \
                 connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                 frame-ancestors 'none'"
            ),
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three
            .iter()
            .fold(0, |bits, &byte| bits << 8 | u32::from(byte))
            << (8 * (3 - three.len()));
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) as usize % 64;
            text.push(if i > three.len() {
                '='
            } else {
                char::from(ALPHABET[sextet])
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_the_page() {
        let page = Page::new("</script><script>alert(1)</script>", &Examples::default());
        assert_eq!(
            page.html.matches("<script").count(),
            SOURCE.matches("<script").count()
        );
        assert!(!page.html.contains("{{"));
    }
}
