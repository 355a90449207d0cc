//! Reading a Kafka properties file: `name=value` lines as `java.util.Properties` reads them.
//!
//! Comments start with `#` or `!`, a backslash at a line's end continues it, `\n`, `\t`, `\r`, `\u` with four hexadecimal digits and `\` before any
//! other character are escapes, the separator is `=`, `:` or white space. A name that stands twice keeps its last value.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// Reads the text of a properties file.
pub(crate) fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let mut properties = BTreeMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let start = line.trim_start();
        if start.is_empty() || start.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = start.to_owned();
        while ends_in_continuation(&logical) {
            logical.pop();
            let Some((_, next)) = lines.next() else { break };
            logical.push_str(next.trim_start());
        }
        let (name, value) = split(&logical).with_context(|| format!("line {}", number + 1))?;
        properties.insert(name, value);
    }
    Ok(properties)
}

/// Reads one `name=value` of the command line.
pub(crate) fn parse_override(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => bail!("--override {text:?} is not name=value"),
    }
}

/// One line that reads back as this name and value.
pub(crate) fn line(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
    // A value's first space would be taken for the separator's.
    let escape = if value.starts_with(' ') { "\\" } else { "" };
    format!("{name}={escape}{value}\n")
}

/// An odd number of backslashes at the end.
fn ends_in_continuation(line: &str) -> bool {
    line.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1
}

fn split(line: &str) -> Result<(String, String)> {
    let mut escaped = false;
    let end = line.char_indices().find(|(_, c)| {
        let separates = !escaped && (matches!(c, '=' | ':') || c.is_whitespace());
        escaped = *c == '\\' && !escaped;
        separates
    });
    let (name, rest) = end.map_or((line, ""), |(at, _)| line.split_at(at));
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
    Ok((unescape(name)?, unescape(rest)?.trim_end().to_owned()))
}

fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                out.push(code.with_context(|| format!("\\u{digits} is no character"))?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_as_java_reads_it() {
        let text = "# comment\n! also\n\nnode.id=1\nlisteners = PLAINTEXT://:9092,\\\n   INTERNAL://:10092\nbroker.rack: a\nlog.dirs /var/lib\nk\\=ey=v\\u0041l\\\\ue\nempty=\nnode.id=2\n";
        let read = parse(text).unwrap();
        let expected = [
            ("broker.rack", "a"),
            ("empty", ""),
            ("k=ey", "vAl\\ue"),
            ("listeners", "PLAINTEXT://:9092,INTERNAL://:10092"),
            ("log.dirs", "/var/lib"),
            ("node.id", "2"),
        ];
        let expected: BTreeMap<_, _> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_written_line_reads_back() {
        for value in ["/var/lib/ottla", r"C:\data", "two\nlines", " space", "a=b:c#d", ""] {
            let read = parse(&line("log.dirs", value)).unwrap();
            assert_eq!(read.get("log.dirs").map(String::as_str), Some(value));
        }
    }

    #[test]
    fn an_override_without_a_value_sign_is_refused() {
        assert!(parse_override("node.id").is_err());
        assert_eq!(parse_override("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
    }
}
