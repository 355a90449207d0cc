//! Transactions, as the final read_committed reads saw them: all of one, or nothing.

use std::collections::BTreeMap;

use super::{Class, Facts, Verdict, at};
use crate::event::{Isolation, Outcome, TransactionEnd};
use crate::history::Produce;

pub(super) fn check(facts: &Facts<'_>, verdict: &mut Verdict) {
    let history = facts.history;
    let mut seen = vec![false; history.values.len()];
    for ((_, isolation), log) in &history.logs {
        if *isolation == Isolation::ReadCommitted {
            log.iter().for_each(|(_, value)| seen[at(*value)] = true);
        }
    }
    let mut transactions = BTreeMap::<u32, Vec<&Produce>>::new();
    for produce in &history.produces {
        let read = history.logs.contains_key(&(produce.partition, Isolation::ReadCommitted));
        if let Some(transaction) = produce.transaction.filter(|_| read) {
            transactions.entry(transaction).or_default().push(produce);
        }
    }
    for (transaction, records) in transactions {
        let name = history.word(transaction);
        let is_seen = |produce: &&&Produce| seen[at(produce.value)];
        let text = |produce: &Produce| format!("{} of transaction {name}", history.value(produce.value));
        let Some(first) = records.iter().find(is_seen) else { continue };
        match facts.end_of(first) {
            TransactionEnd::Aborted => {
                verdict.add(Class::AbortedRead, || format!("{} is read, and it was aborted", text(first)));
            }
            // What of a committed one is missing is lost, and told as that.
            TransactionEnd::Committed | TransactionEnd::Unknown => {
                let acknowledged = |produce: &&&Produce| produce.outcome == Outcome::Ok;
                if let Some(missing) = records.iter().filter(acknowledged).find(|produce| !is_seen(produce)) {
                    verdict.add(Class::TornTransaction, || {
                        format!("{} is read, and {} is not", text(first), text(missing))
                    });
                }
            }
        }
    }
}
