//! Sentences with gaps: `"{p:은} {v}에 산다."`, `"{p} works as {v:a}."`.
//!
//! `{key}` is the slot's text; `{key:form}` its text with a Korean particle behind it (see
//! [`crate::korean`]), with an English article before it (`a`) or with a capital (`cap`).
//! Templates are constants of this crate: a gap without a slot is a mistake here and panics in tests.

use numerics::Rng;

use crate::korean::with_particle;

/// One of the wordings.
pub(crate) fn pick(rng: &mut Rng, wordings: &[&'static str]) -> &'static str {
    let wording: &&'static str = rng.pick(wordings);
    wording
}

/// The template with its gaps filled.
pub(crate) fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let close = open
            + rest[open..]
                .find('}')
                .expect("every gap of a template is closed");
        let gap = &rest[open + 1..close];
        let (key, form) = gap
            .split_once(':')
            .map_or((gap, None), |(k, f)| (k, Some(f)));
        let text = slots
            .iter()
            .find(|(name, _)| *name == key)
            .unwrap_or_else(|| panic!("template {template:?} has no slot {key:?}"))
            .1;
        match form {
            None => out.push_str(text),
            Some("a") => {
                out.push_str(if text.starts_with(['a', 'e', 'i', 'o', 'u']) {
                    "an "
                } else {
                    "a "
                });
                out.push_str(text);
            }
            Some("cap") => out.push_str(&capitalised(text)),
            Some(particle) => out.push_str(
                &with_particle(text, particle)
                    .unwrap_or_else(|| panic!("template {template:?} has no form {particle:?}")),
            ),
        }
        rest = &rest[close + 1..];
    }
    out.push_str(rest);
    out
}

/// The text with its first letter in upper case.
pub(crate) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_take_particles_articles_and_capitals() {
        assert_eq!(
            fill("{p:은} {v}에 산다.", &[("p", "도윤"), ("v", "등대곶")]),
            "도윤은 등대곶에 산다."
        );
        assert_eq!(
            fill("{p} is {v:a}.", &[("p", "Mina"), ("v", "astronomer")]),
            "Mina is an astronomer."
        );
        assert_eq!(fill("{v:cap}!", &[("v", "the sea")]), "The sea!");
    }
}
