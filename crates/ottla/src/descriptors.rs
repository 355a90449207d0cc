//! What the system's limit of open files is shared out to: the log files that are kept open, the connections of clients, and
//! a reserve for all else, so that a broker with too many clients refuses some of them and does not fail at its files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Log files that are kept open at most, where the limit is large enough.
const FILES_MAX: usize = 1024;
/// Their part of a smaller limit.
const FILES_SHARE: usize = 4;
/// And so many at least: a log that is written has three open.
const FILES_MIN: usize = 16;
/// For the quorum's files, directories that are synced, checkpoints, the ports, and the connections of a few brokers ...
const RESERVE: usize = 128;
/// ... and this part of the limit, for those of many.
const RESERVE_SHARE: usize = 16;

/// How the limit is shared out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptors {
    /// The limit of the process (RLIMIT_NOFILE).
    pub(crate) limit: usize,
    /// Log files that are kept open. Half as many more may be on their way to clients.
    pub(crate) files: usize,
    /// Connections of clients.
    pub(crate) connections: usize,
}

impl Descriptors {
    /// Raises the limit as far as the system lets a process do that itself, and shares it out.
    pub(crate) fn raise() -> Descriptors {
        let before = getrlimit(Resource::Nofile);
        if before.current != before.maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before })
        {
            tracing::warn!(%error, open_files = ?before.current, "the limit of open files cannot be raised");
        }
        let limit = getrlimit(Resource::Nofile).current;
        let shared = Descriptors::of(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX));
        tracing::debug!(?shared, "the limit of open files");
        shared
    }

    /// The shares of this limit. One connection is let in however small it is: somebody has to be told.
    fn of(limit: usize) -> Descriptors {
        let files = (limit / FILES_SHARE).clamp(FILES_MIN, FILES_MAX);
        let kept = files + files / 2 + RESERVE + limit / RESERVE_SHARE;
        Descriptors { limit, files, connections: limit.saturating_sub(kept).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_limit_are_not_more_than_it_and_most_of_a_large_one_is_for_connections() {
        let shared = |limit| {
            let Descriptors { files, connections, .. } = Descriptors::of(limit);
            (files, connections)
        };
        assert_eq!(shared(1024), (256, 448));
        assert_eq!(shared(65_536), (1024, 59_776));
        assert_eq!(shared(64), (16, 1));
        for limit in [512, 1024, 4096, 1 << 20, usize::MAX] {
            let Descriptors { files, connections, .. } = Descriptors::of(limit);
            assert!(files + files / 2 + connections <= limit - RESERVE, "{limit}");
        }
    }
}
