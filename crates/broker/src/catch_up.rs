//! How far the metadata is, asked of the active controller for many at a time.
//!
//! Invariant: an answer counts for those only who came before it was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use model::MetadataOffset;
use tokio::sync::Mutex;

/// Rounds of asking, one at a time.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    begun: AtomicU64,
    /// The last round that was answered; locked while one is asked.
    last: Mutex<Option<Round>>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    number: u64,
    at: MetadataOffset,
}

impl Rounds {
    /// What `ask` answers, or what another one's did that began after this was called.
    ///
    /// # Errors
    /// That of `ask`.
    pub(crate) async fn join<E>(
        &self,
        ask: impl Future<Output = Result<MetadataOffset, E>>,
    ) -> Result<MetadataOffset, E> {
        let begun = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if let Some(round) = last.filter(|round| round.number > begun) {
            return Ok(round.at);
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let at = ask.await?;
        *last = Some(Round { number, at });
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    async fn said(answer: oneshot::Receiver<u64>) -> Result<MetadataOffset, Infallible> {
        Ok(MetadataOffset(answer.await.expect("it is sent")))
    }

    async fn nobody() -> Result<MetadataOffset, Infallible> {
        panic!("asked once too often")
    }

    #[tokio::test]
    async fn who_comes_while_one_is_asked_waits_for_the_next_round() {
        let rounds = Rounds::default();
        let (first_says, first) = oneshot::channel();
        let (second_says, second) = oneshot::channel();
        let mut asks = pin!(rounds.join(said(first)));
        assert!(asks.as_mut().now_or_never().is_none());
        let mut late = pin!(rounds.join(said(second)));
        let mut later = pin!(rounds.join(nobody()));
        assert!(late.as_mut().now_or_never().is_none() && later.as_mut().now_or_never().is_none());
        first_says.send(5).unwrap();
        assert_eq!(asks.await, Ok(MetadataOffset(5)));
        assert!(
            late.as_mut().now_or_never().is_none() && later.as_mut().now_or_never().is_none(),
            "5 may be too old for them"
        );
        second_says.send(7).unwrap();
        assert_eq!(late.await, Ok(MetadataOffset(7)));
        assert_eq!(later.await, Ok(MetadataOffset(7)));
    }

    #[tokio::test]
    async fn a_round_that_is_given_up_answers_nobody() {
        let rounds = Rounds::default();
        let (_never, answer) = oneshot::channel();
        {
            let mut gives_up = pin!(rounds.join(said(answer)));
            assert!(gives_up.as_mut().now_or_never().is_none());
        }
        let (says, answer) = oneshot::channel();
        says.send(3).unwrap();
        assert_eq!(rounds.join(said(answer)).await, Ok(MetadataOffset(3)));
    }
}
