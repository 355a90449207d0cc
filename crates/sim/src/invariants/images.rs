//! Every image equals the replay of the metadata from its first record (`R65`): brokers that have come as far as the observer
//! have the very same.

use broker::api::BrokerApi;

use super::Observer;
use crate::node::Node;

/// Compares the images of those that run. Says how many could be compared, and what differs.
pub fn check_images(nodes: &[Node], observer: &Observer) -> (u64, Vec<String>) {
    let seen = observer.lock();
    let (mut compared, mut violations) = (0, Vec::new());
    for node in nodes {
        let Some(image) = node.look(|running| running.broker.image()) else { continue };
        if image.next_offset() != seen.image.next_offset() {
            continue;
        }
        compared += 1;
        if *image != seen.image {
            violations.push(format!("the image of {:?} at {:?} is another one", node.id, image.next_offset()));
        }
    }
    (compared, violations)
}
