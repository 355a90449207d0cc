//! Group coordinators: what is theirs alone besides what [`crate::shards`] does for every kind (`R52`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordinator::consumer::topics::changed_topics;
use coordinator::request::{ListGroupsRequest, ListGroupsResponse};
use coordinator::shard::GroupEffect;
use coordinator::{GroupRequest, GroupResponse, GroupShard, Rebalances};
use metadata::MetadataDelta;
use model::{ErrorCode, LeaderEpoch, TopicId};

use crate::context::Context;
use crate::shards::{Kind, Shard, Shards};

/// The topic that the groups' state is kept in.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The kind.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// What shards have counted that are no longer here.
    past: Mutex<Rebalances>,
}

impl Kind for Groups {
    type Core = GroupShard;

    const TOPIC: &'static str = OFFSETS_TOPIC;

    fn core(&self, context: &Context, _: LeaderEpoch) -> GroupShard {
        GroupShard::new(context.config.groups.clone())
    }

    fn listed(core: &mut GroupShard, context: &Context) {
        core.handle_metadata(&context.image(), &BTreeSet::new());
    }

    fn ended(&self, core: &GroupShard) {
        add(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner), core.rebalances());
    }

    fn carry_out(shards: &Arc<Shards<Self>>, shard: &Arc<Shard<Self>>, effect: GroupEffect) {
        let GroupEffect::Resolve { group_id, expressions, image } = effect;
        let (shards, shard) = (Arc::clone(shards), Arc::clone(shard));
        tokio::spawn(async move {
            let wall = shards.context.clock.wall();
            let resolve = move || coordinator::consumer::regex::resolve(&expressions, &image, wall);
            let resolved = shards.context.disk_pool.run(resolve).await;
            shards.tell(&shard, |core, now| core.resolved(&group_id, resolved, now));
        });
    }
}

fn add(sum: &mut Rebalances, more: Rebalances) {
    sum.classic += more.classic;
    sum.consumer += more.consumer;
}

/// How long somebody who asks for stable offsets waits until the coordinator knows that it is one.
const CATCH_UP: Duration = Duration::from_secs(1);

fn is_for_stable_offsets(request: &GroupRequest) -> bool {
    matches!(request, GroupRequest::OffsetFetch(fetch) if fetch.require_stable)
}

impl Shards<Groups> {
    /// How often groups were rebalanced here since the process started.
    pub(crate) fn rebalances(&self) -> Rebalances {
        let mut sum = *self.kind.past.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in self.all() {
            shard.look(|core| add(&mut sum, core.rebalances()));
        }
        sum
    }

    /// How many groups are coordinated here, by type and state.
    pub(crate) async fn states(self: &Arc<Self>) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut states = BTreeMap::new();
        let listed = self.group(GroupRequest::ListGroups(ListGroupsRequest::default())).await;
        if let Ok(GroupResponse::ListGroups(listed)) = listed {
            for group in listed.groups {
                *states.entry((group.group_type, group.state)).or_default() += 1;
            }
        }
        states
    }

    /// Asks the coordinator of the request's group, if it is here; a request for all groups, all coordinators that are here.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) async fn group(self: &Arc<Self>, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        if let Some(group_id) = request.group_id().map(str::to_owned) {
            if group_id.is_empty() && request.needs_a_name() {
                return Err(ErrorCode::InvalidGroupId);
            }
            if is_for_stable_offsets(&request) {
                self.check_coordinates(&group_id).await?;
            }
            return self.ask(&group_id, request).await;
        }
        let mut all = ListGroupsResponse { error: ErrorCode::None, groups: Vec::new() };
        for answer in self.ask_all(request).await? {
            if let GroupResponse::ListGroups(listed) = answer {
                all.groups.extend(listed.groups);
            }
        }
        Ok(GroupResponse::ListGroups(all))
    }

    /// Whether no other coordinator of a group has acknowledged an offset before this was called, that this one does not know
    /// (`R49`, `R76`): a transaction's successor would take its inputs once more. What is written here waits for the in-sync
    /// replicas anyway.
    async fn check_coordinates(&self, group_id: &str) -> Result<(), ErrorCode> {
        self.home(group_id)?;
        if !Box::pin(self.context.catch_up(CATCH_UP)).await {
            // Not NOT_COORDINATOR: librdkafka would never ask for these offsets again.
            return Err(ErrorCode::CoordinatorLoadInProgress);
        }
        self.check_leads(group_id)
    }

    /// Tells the shards of the metadata, and of topics that are gone: their offsets go with them.
    pub(crate) async fn follow_topics(self: Arc<Self>) {
        let mut images = self.context.images();
        let mut before = Arc::clone(&images.borrow_and_update());
        while images.changed().await.is_ok() {
            let after = Arc::clone(&images.borrow_and_update());
            let delta = MetadataDelta::between(&before, &after);
            let previous = std::mem::replace(&mut before, after);
            let gone: Vec<(String, TopicId)> =
                delta.removed_topics.iter().map(|topic| (topic.name.to_string(), topic.id)).collect();
            let changed = changed_topics(&previous, &before, &delta);
            for shard in self.all() {
                self.tell(&shard, |core, now| {
                    core.handle_metadata(&before, &changed);
                    if !gone.is_empty() {
                        core.handle_topics_deleted(&gone, now);
                    }
                });
            }
        }
    }
}
