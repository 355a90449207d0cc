//! Subscriptions by regular expression: compiled and matched in linear time (KIP-848 says RE2), within bounds.
//!
//! Matching against all topics may take a while, so the core does not do it: it asks its shell for [`resolve`], and takes
//! the result when it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::MetadataImage;
use model::Time;
use regex::bytes::{Regex, RegexBuilder};

use crate::consumer::group::ResolvedRegex;

/// Longer expressions are refused.
const MAX_LENGTH: usize = 16_384;
/// Bytes that a compiled expression may take. Time per topic is linear in it.
const MAX_PROGRAM_BYTES: usize = 256 << 10;
/// Bytes of the cache that matching uses.
const MAX_CACHE_BYTES: usize = 1 << 20;
/// How deep groups may be nested.
const MAX_NESTING: u32 = 100;

/// Whether an expression can be compiled within the bounds.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check(expression: &str) -> Result<(), String> {
    compile(expression).map(drop)
}

/// What each expression stands for. One that cannot be compiled stands for nothing.
#[must_use]
pub fn resolve(expressions: &[String], image: &MetadataImage, now: Time) -> BTreeMap<String, ResolvedRegex> {
    let version = i64::try_from(image.next_offset().0).unwrap_or(i64::MAX);
    let resolved = |expression: &String| {
        let compiled = compile(expression).ok();
        let matches = |name: &&Arc<str>| compiled.as_ref().is_some_and(|regex| regex.is_match(name.as_bytes()));
        let topics: BTreeSet<String> = image.topic_ids().keys().filter(matches).map(|name| name.to_string()).collect();
        (expression.clone(), ResolvedRegex { topics: Arc::new(topics), version, resolved_at: now })
    };
    expressions.iter().map(resolved).collect()
}

fn compile(expression: &str) -> Result<Regex, String> {
    if expression.len() > MAX_LENGTH {
        return Err(format!("it is longer than {MAX_LENGTH} bytes"));
    }
    let expression = without_quotes(expression);
    // Alone first: "a)(b" must not become valid between our parentheses.
    build(&expression)?;
    build(&format!("^(?:{expression})$"))
}

/// RE2 has \d, \w and \s of ASCII, which is also what names of topics are made of. Only an expression with classes of
/// Unicode (\p{L}) is compiled with Unicode's tables.
fn build(expression: &str) -> Result<Regex, String> {
    let classes = expression.contains("\\p") || expression.contains("\\P");
    RegexBuilder::new(expression)
        .unicode(classes)
        .size_limit(MAX_PROGRAM_BYTES)
        .dfa_size_limit(MAX_CACHE_BYTES)
        .nest_limit(MAX_NESTING)
        .build()
        .map_err(|error| error.to_string())
}

/// RE2 takes what stands between \Q and \E as it is; this engine has no such quotes.
fn without_quotes(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let mut rest = expression;
    while let Some(at) = quote(rest) {
        let quoted = &rest[at + 2..];
        let (text, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
        out.push_str(&rest[..at]);
        out.push_str(&regex::escape(text));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Where \Q stands; in "\\Q" the backslash before is the one that counts.
fn quote(text: &str) -> Option<usize> {
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        if char == '\\' && chars.next().is_some_and(|(_, next)| next == 'Q') {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_names() {
        let cases = [
            ("a|b.", "a", true),
            ("a|b.", "bc", true),
            ("a|b.", "ab", false),
            ("", "", true),
            (r"foo-\d+", "foo-12", true),
            (r"\Qa.b\E-c", "a.b-c", true),
            (r"\Qa.b\E-c", "aXb-c", false),
            (r"a\\Q", r"a\Q", true),
            (r"\pL+", "abc", true),
            ("(?i)TOPIC", "topic", true),
            (r"[\w.]{3}", "a.b", true),
        ];
        for (expression, name, matches) in cases {
            assert_eq!(compile(expression).unwrap().is_match(name.as_bytes()), matches, "{expression} {name}");
        }
    }

    #[test]
    fn what_no_automaton_can_match_or_what_is_too_large_is_refused() {
        let long = "a".repeat(20_000);
        let deep = "(".repeat(1_000) + &")".repeat(1_000);
        for expression in ["(", "a)(b", "(?=a)", r"(a)\1", "(a{1000}){1000}", &long, &deep] {
            assert!(check(expression).is_err(), "{expression:.20}");
        }
    }
}
