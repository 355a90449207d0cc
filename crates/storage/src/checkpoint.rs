//! Kafka's checkpoint files: a version line, a count line, then one line for each entry; and a line of our own with the
//! checksum of all that. One changed digit would else be another offset: a recovery point that nothing was synced up to.
//!
//! A checkpoint is a hint: a damaged one reads as none, and the start that follows has more to look at (`R29`). One that
//! Kafka wrote has no checksum, and is believed as Kafka believes it.

use std::fmt::Write;

use model::Offset;

/// The version that is written, and the only one that is read.
const VERSION: &str = "0";

/// What the line with the checksum begins with, and no other line has.
const CHECKSUM: &str = "#crc32c ";

/// The text of a checkpoint with these lines.
pub(crate) fn format(lines: impl ExactSizeIterator<Item = String>) -> String {
    let mut text = String::new();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a string takes every write");
    put(VERSION);
    put(&lines.len().to_string());
    for line in lines {
        put(&line);
    }
    let checksum = format!("{CHECKSUM}{:08x}\n", model::batch::crc32c(text.as_bytes()));
    text + &checksum
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
    let mut entries: Vec<&str> = lines.collect();
    if let Some(stored) = entries.last().and_then(|line| line.strip_prefix(CHECKSUM)) {
        let covered = text.len() - CHECKSUM.len() - stored.len() - 1;
        if format!("{:08x}", model::batch::crc32c(&text.as_bytes()[..covered])) != stored {
            return Err("its checksum is wrong");
        }
        entries.pop();
    }
    if entries.iter().any(|line| line.contains('#')) {
        return Err("its checksum does not stand at its end");
    }
    if entries.len() == count { Ok(entries) } else { Err("its count is wrong") }
}

/// The offset of a checkpoint that has one.
pub(crate) fn parse_one(text: &[u8]) -> Option<Offset> {
    match parse(text).as_deref() {
        Ok([one]) => one.parse().ok().map(Offset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_a_cut_one_reads_as_none() {
        let text = format(["a 0 5".to_owned(), "b 1 17".to_owned()].into_iter());
        let kafkas = "0\n2\na 0 5\nb 1 17\n";
        assert!(text.starts_with(kafkas) && text.len() == kafkas.len() + 17, "{text}");
        assert_eq!(parse(text.as_bytes()), Ok(vec!["a 0 5", "b 1 17"]));
        assert_eq!(parse(kafkas.as_bytes()), parse(text.as_bytes()), "as Kafka writes it");
        assert_eq!(parse(b"0\n0\n"), Ok(vec![]));
        for cut in (0..text.len()).filter(|cut| *cut != kafkas.len()) {
            assert!(parse(&text.as_bytes()[..cut]).is_err(), "{cut}");
        }
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped).is_err(), "bit {bit}");
        }
        assert!(parse(b"1\n0\n").is_err());
        assert!(parse(b"0\n99999999999999999999\n").is_err());
    }
}
