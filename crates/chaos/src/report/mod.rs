//! A run as one page: it needs no network, and shows the faults, what was acknowledged beside them and how fast, for how long
//! nothing was, and the verdict.
//!
//! Here the figures are made, as JSON in the page; `page.html` draws them. What a page holds is bounded by the faults and by a
//! fixed number of steps in time.

use serde::Serialize;
use serde_json::json;

use crate::check::Verdict;
use crate::event::Outcome;
use crate::history::History;
use crate::unavailability::{by_kind, calm, readings};

const PAGE: &str = include_str!("page.html");
/// Into how many steps a run is cut, and the shortest of them.
const STEPS: u64 = 720;
const STEP_MIN_US: u64 = 100_000;
/// How many notes are shown.
const NOTES_MAX: usize = 500;

/// What happened in one step of time.
#[derive(Clone, Default, Debug, Serialize)]
struct Step {
    acknowledged: usize,
    unknown: usize,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
}

/// The page of a run that was judged.
pub fn page(history: &History, verdict: &Verdict) -> String {
    let (step_us, steps) = steps(history);
    let readings = readings(history);
    let cost = |index: usize| readings.iter().find(|reading| reading.fault == index);
    let faults: Vec<_> = history
        .faults
        .iter()
        .enumerate()
        .map(|(index, fault)| {
            let (us, from) = cost(index).map_or((0, fault.start), |reading| (reading.us, reading.from));
            let place = cost(index).map_or("", |reading| &reading.place);
            let settled = fault.settled.unwrap_or(fault.end);
            json!({
                "kind": fault.kind, "target": fault.target, "start": fault.start, "end": fault.end, "settled": settled,
                "us": us, "from": from, "place": place,
            })
        })
        .collect();
    let anomalies: Vec<_> = verdict
        .anomalies
        .iter()
        .map(|(class, found)| json!({ "class": class.name(), "count": found.count, "told": found.told }))
        .collect();
    let data = json!({
        "run": history.run, "sound": verdict.is_sound(), "figures": verdict.figures, "anomalies": anomalies,
        "step_us": step_us, "steps": steps, "faults": faults, "kinds": by_kind(&readings), "calm_us": calm(history),
        "notes": history.notes.iter().take(NOTES_MAX).collect::<Vec<_>>(),
    });
    // Within a script nothing may look like its end.
    PAGE.replace("__DATA__", &data.to_string().replace('<', "\\u003c"))
}

/// How long a step is, and all of them: acknowledgements by when they came.
fn steps(history: &History) -> (u64, Vec<Step>) {
    let times = history.produces.iter().map(|produce| produce.complete);
    let end = times.chain(history.faults.iter().map(|fault| fault.settled.unwrap_or(fault.end))).max().unwrap_or(0);
    let step_us = end.div_ceil(STEPS).max(STEP_MIN_US);
    let count = usize::try_from(end / step_us).expect("there are few steps") + 1;
    let (mut steps, mut latencies) = (vec![Step::default(); count], vec![Vec::new(); count]);
    for produce in &history.produces {
        let step = usize::try_from(produce.complete / step_us).expect("there are few steps");
        if produce.outcome == Outcome::Ok {
            steps[step].acknowledged += 1;
            latencies[step].push(produce.complete.saturating_sub(produce.invoke));
        } else {
            steps[step].unknown += 1;
        }
    }
    for (step, latencies) in steps.iter_mut().zip(&mut latencies).filter(|(_, latencies)| !latencies.is_empty()) {
        latencies.sort_unstable();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
        (step.p50_us, step.p99_us, step.max_us) = (at(50), at(99), at(100));
    }
    (step_us, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;

    const LINES: &str = concat!(
        r#"{"type":"run","version":1,"seed":7,"commit":"abc","title":"</script><b>x"}"#,
        "\n",
        r#"{"type":"produce","process":"p","partition":0,"seq":0,"value":"a","invoke":100,"complete":900,"outcome":"ok","offset":0}"#,
        "\n",
        r#"{"type":"produce","process":"p","partition":0,"seq":1,"value":"b","invoke":950000,"complete":1000000,"outcome":"ok","offset":1}"#,
        "\n",
        r#"{"type":"fault","kind":"kill","target":"2","start":1000,"end":5000,"settled":900000}"#,
        "\n",
        r#"{"type":"log","partition":0,"records":[[0,"a"],[1,"b"]]}"#,
        "\n",
        r#"{"type":"end","partition":0,"high_watermark":2}"#,
    );

    /// The figures of a page.
    fn data(page: &str) -> serde_json::Value {
        let script = page.split("const DATA = ").nth(1).expect("a page has figures");
        serde_json::from_str(script.split(";\n").next().expect("they end")).expect("they are JSON")
    }

    #[test]
    fn a_page_holds_the_run_and_nothing_of_it_is_markup() {
        let history = History::read(LINES.as_bytes()).expect("sound");
        let verdict = check(&history).expect("it can be judged");
        let page = page(&history, &verdict);
        assert!(!page.contains("</script><b>"), "what a history says became markup");
        assert!(!page.contains("__DATA__") && !page.contains("http://") && !page.contains("https://"));
        let data = data(&page);
        assert_eq!((&data["sound"], &data["run"]["title"]), (&json!(true), &json!("</script><b>x")));
        assert_eq!((&data["step_us"], &data["steps"].as_array().expect("steps").len()), (&json!(STEP_MIN_US), &11));
        let first = json!({"acknowledged": 1, "unknown": 0, "p50_us": 800, "p99_us": 800, "max_us": 800});
        assert_eq!(data["steps"][0], first);
        assert_eq!((&data["faults"][0]["us"], &data["kinds"][0]["worst_us"]), (&json!(899_000), &json!(899_000)));
    }
}
