//! `ottla chaos check`: the verdict over a history.

use std::fmt::Write;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ::chaos::History;
use ::chaos::check::{Verdict, check};
use ::chaos::report::page;
use ::chaos::unavailability::{self, Summary, by_kind, readings};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cli::output::Output;

pub(super) fn run(path: &Path, at_least: usize, output: Output) -> Result<()> {
    let history = read(path)?;
    let verdict = check(&history).with_context(|| path.display().to_string())?;
    let acknowledged = verdict.figures.acknowledged;
    tell(&history, &verdict, output)?;
    ensure!(acknowledged >= at_least, "only {acknowledged} records were acknowledged, fewer than {at_least}");
    ensure!(verdict.is_sound(), "{} shows what must not be", path.display());
    Ok(())
}

/// A history from its file.
pub(super) fn read(path: &Path) -> Result<History> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    History::read(BufReader::with_capacity(1 << 20, file)).with_context(|| path.display().to_string())
}

/// Writes the page of a history, whatever its verdict.
pub(super) fn report(path: &Path, out: &Path, output: Output) -> Result<()> {
    let history = read(path)?;
    let verdict = check(&history).with_context(|| path.display().to_string())?;
    write_page(&history, &verdict, out)?;
    output.fact(&format!("the report is {}", out.display()), &json!({ "report": out, "sound": verdict.is_sound() }))
}

pub(super) fn write_page(history: &History, verdict: &Verdict, out: &Path) -> Result<()> {
    std::fs::write(out, page(history, verdict)).with_context(|| format!("cannot write {}", out.display()))
}

/// Tells a verdict.
pub(super) fn tell(history: &History, verdict: &Verdict, output: Output) -> Result<()> {
    let readings = readings(history);
    let kinds = by_kind(&readings);
    let calm = unavailability::calm(history);
    let anomalies: serde_json::Map<String, Value> =
        verdict.anomalies.iter().map(|(class, found)| (class.name(), json!(found))).collect();
    let object = json!({
        "sound": verdict.is_sound(), "figures": verdict.figures, "anomalies": anomalies, "unavailability": kinds,
        "readings": readings, "calm_us": calm,
    });
    output.fact(&text(verdict, &kinds, calm), &object)
}

fn text(verdict: &Verdict, kinds: &[Summary], calm: Option<u64>) -> String {
    let figures = &verdict.figures;
    let mut text = format!(
        "{} records acknowledged, {} of unknown outcome, {} refused; {} read back, {} polled\n",
        figures.acknowledged, figures.unknown, figures.failed, figures.read_back, figures.polled
    );
    let mut line = |line: String| writeln!(text, "{line}").expect("a string takes all");
    line(format!(
        "{} commits of offsets; transactions: {} committed, {} aborted, {} unknown; {} faults",
        figures.commits, figures.committed, figures.aborted, figures.undecided, figures.faults
    ));
    let ms = |us: u64| format!("{}.{:03} s", us / 1_000_000, us / 1000 % 1000);
    for kind in kinds {
        let Summary { kind, faults, median_us, worst_us } = kind;
        line(format!(
            "  {kind:<22}{faults:>6}   without acknowledgements: median {}, worst {}",
            ms(*median_us),
            ms(*worst_us)
        ));
    }
    if let Some(calm) = calm {
        line(format!("  {:<22}{:>6}   worst {}", "no fault", "", ms(calm)));
    }
    for (class, found) in &verdict.anomalies {
        line(format!("{}: {}", class.name(), found.count));
        found.told.iter().for_each(|told| line(format!("  {told}")));
        if found.count > found.told.len() {
            line(format!("  and {} more", found.count - found.told.len()));
        }
    }
    if verdict.is_sound() {
        line("nothing is wrong".to_owned());
    }
    text.trim_end().to_owned()
}
