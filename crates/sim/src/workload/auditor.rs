//! Looks at what the groups have committed when all others are done.

use std::collections::BTreeMap;

use anyhow::Result;

use super::group::{GroupClient, Membership};
use super::{PARTITIONS, PAUSE, topics_made};

/// One for each group.
#[derive(Debug)]
pub struct Auditor(pub Vec<GroupClient>);

impl Auditor {
    /// Waits for its turn, and asks until it is told.
    pub async fn run(mut self) {
        let Some(history) = self.0.first().map(|group| group.history.clone()) else { return };
        topics_made(&history).await;
        loop {
            tokio::time::sleep(PAUSE).await;
            let all_done = {
                let history = history.lock();
                history.stopping && history.working == 0
            };
            if !all_done {
                continue;
            }
            match self.look().await {
                Ok(offsets) => {
                    history.lock().audited = Some(offsets);
                    return;
                }
                Err(_) => self.0.iter_mut().for_each(GroupClient::forget),
            }
        }
    }

    async fn look(&mut self) -> Result<BTreeMap<(String, i32), i64>> {
        let nobody = Membership { member_id: String::new(), generation: i32::MAX, has_epochs: false, instance: None };
        let partitions: Vec<i32> = (0..PARTITIONS).collect();
        let mut all = BTreeMap::new();
        for group in &mut self.0 {
            group.coordinator().await?;
            let offsets = group.offsets(&nobody, &partitions).await?;
            all.extend(offsets.into_iter().map(|(partition, offset)| ((group.group.clone(), partition), offset)));
        }
        Ok(all)
    }
}
