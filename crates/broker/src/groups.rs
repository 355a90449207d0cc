//! Group coordinators: what is theirs alone besides what [`crate::shards`] does for every kind (`R52`).

use std::collections::BTreeSet;
use std::sync::Arc;

use coordinator::consumer::topics::changed_topics;
use coordinator::request::ListGroupsResponse;
use coordinator::shard::GroupEffect;
use coordinator::{GroupRequest, GroupResponse, GroupShard};
use metadata::MetadataDelta;
use model::{ErrorCode, LeaderEpoch, TopicId};

use crate::context::Context;
use crate::shards::{Kind, Shard, Shards};

/// The topic that the groups' state is kept in.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The kind.
#[derive(Debug)]
pub(crate) struct Groups;

impl Kind for Groups {
    type Core = GroupShard;

    const TOPIC: &'static str = OFFSETS_TOPIC;

    fn core(&self, context: &Context, _: LeaderEpoch) -> GroupShard {
        GroupShard::new(context.config.groups.clone())
    }

    fn listed(core: &mut GroupShard, context: &Context) {
        core.handle_metadata(&context.image(), &BTreeSet::new());
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

impl Shards<Groups> {
    /// Asks the coordinator of the request's group, if it is here; a request for all groups, all coordinators that are here.
    ///
    /// # Errors
    /// As [`Shards::ask`].
    pub(crate) async fn group(self: &Arc<Self>, request: GroupRequest) -> Result<GroupResponse, ErrorCode> {
        if let Some(group_id) = request.group_id().map(str::to_owned) {
            if group_id.is_empty() && request.needs_a_name() {
                return Err(ErrorCode::InvalidGroupId);
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
