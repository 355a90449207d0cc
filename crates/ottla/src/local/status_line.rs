//! The cluster's state in one line that is rewritten in place. Only a terminal has it, and only then the nodes are asked.

use std::io::{IsTerminal, Write};

use super::node::{Node, NodeReport};

/// See the module.
pub(super) struct StatusLine {
    terminal: bool,
    width: usize,
}

impl StatusLine {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), width: 0 }
    }

    pub(super) fn is_shown(&self) -> bool {
        self.terminal
    }

    pub(super) fn show(&mut self, line: &str) {
        self.clear();
        self.width = line.chars().count();
        // A status line that cannot be written is not worth an error.
        let mut out = std::io::stderr();
        let _ = write!(out, "{line}").and_then(|()| out.flush());
    }

    pub(super) fn clear(&mut self) {
        if self.width > 0 {
            // As above.
            let _ = write!(std::io::stderr(), "\r{:width$}\r", "", width = self.width);
            self.width = 0;
        }
    }
}

/// Asks every node that runs.
pub(super) async fn describe(nodes: &[Node]) -> String {
    let mut reports = Vec::new();
    for node in nodes {
        reports.push((node.id, if node.runs() { node.report().await } else { None }));
    }
    line(&reports)
}

fn line(reports: &[(u16, Option<NodeReport>)]) -> String {
    let is_up = |report: &&NodeReport| report.state.as_deref() == Some("running");
    let up = reports.iter().filter_map(|(_, report)| report.as_ref()).filter(is_up);
    let mut text = format!("{} of {} nodes up", up.clone().count(), reports.len());
    for (id, report) in reports {
        match report {
            Some(report) if is_up(&report) => text.push_str(&format!("  {id}: {} leaders", report.leaders)),
            Some(_) => text.push_str(&format!("  {id}: starting")),
            None => text.push_str(&format!("  {id}: down")),
        }
    }
    // The node that knows most speaks for the cluster.
    if let Some(newest) = up.max_by_key(|report| report.metadata_offset) {
        text.push_str(&format!("  under-replicated {}  offline {}", newest.under_replicated, newest.offline));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_that_knows_most_speaks_for_the_cluster() {
        let report = |state: &str, metadata_offset, leaders, under_replicated| {
            Some(NodeReport {
                state: Some(state.to_owned()),
                metadata_offset: Some(metadata_offset),
                leaders,
                under_replicated,
                offline: 0,
            })
        };
        let reports = [(1, report("running", 9, 4, 0)), (2, None), (3, report("running", 10, 2, 6))];
        assert_eq!(
            line(&reports),
            "2 of 3 nodes up  1: 4 leaders  2: down  3: 2 leaders  under-replicated 6  offline 0"
        );
        let reports = [(1, report("starting", 0, 0, 0))];
        assert_eq!(line(&reports), "0 of 1 nodes up  1: starting");
    }
}
