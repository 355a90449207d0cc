//! Kafka's checkpoint files: a version line, a count line, then one line for each entry.
//!
//! A checkpoint is a hint: a damaged one reads as none, and the start that follows has more to look at (`R29`).

use std::fmt::Write;

/// The version that is written, and the only one that is read.
const VERSION: &str = "0";

/// The text of a checkpoint with these lines.
pub(crate) fn format(lines: impl ExactSizeIterator<Item = String>) -> String {
    let mut text = String::new();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a string takes every write");
    put(VERSION);
    put(&lines.len().to_string());
    for line in lines {
        put(&line);
    }
    text
}

/// The lines of a checkpoint, or what is wrong with it.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<&str>, &'static str> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let whole = text.strip_suffix('\n').ok_or("its last line is cut off")?;
    let mut lines = whole.split('\n');
    if lines.next() != Some(VERSION) {
        return Err("its version is unknown");
    }
    let count: usize = lines.next().and_then(|n| n.parse().ok()).ok_or("its count is not a number")?;
    let entries: Vec<&str> = lines.collect();
    if entries.len() == count { Ok(entries) } else { Err("its count is wrong") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_a_cut_one_reads_as_none() {
        let text = format(["a 0 5".to_owned(), "b 1 17".to_owned()].into_iter());
        assert_eq!(text, "0\n2\na 0 5\nb 1 17\n");
        assert_eq!(parse(text.as_bytes()), Ok(vec!["a 0 5", "b 1 17"]));
        assert_eq!(parse(b"0\n0\n"), Ok(vec![]));
        for cut in 0..text.len() {
            assert!(parse(&text.as_bytes()[..cut]).is_err(), "{cut}");
        }
        assert!(parse(b"1\n0\n").is_err());
        assert!(parse(b"0\n99999999999999999999\n").is_err());
    }
}
