//! Every image equals the replay of the metadata from its first record (`R65`): brokers that have come as far as the observer
//! have the very same.

use broker::api::BrokerApi;
use metadata::MetadataImage;

use super::Observer;
use crate::net::HostId;
use crate::node::Node;

/// Compares the images of those that run. Says how many could be compared, and what differs.
pub fn check_images(nodes: &[Node], observer: &Observer) -> (u64, Vec<String>) {
    let seen = observer.lock();
    let (mut compared, mut violations) = (0, Vec::new());
    for node in nodes {
        let Some(image) = node.look(|running| running.broker.image()) else { continue };
        if image.next_offset() == seen.image.next_offset() {
            compared += 1;
            violations.extend(compare(node.id, &image, &seen.image));
        }
    }
    (compared, violations)
}

fn compare(node: HostId, image: &MetadataImage, seen: &MetadataImage) -> Option<String> {
    (image != seen).then(|| format!("the image of {node:?} at {:?} is another one", image.next_offset()))
}

#[cfg(test)]
mod tests {
    use metadata::MetadataRecord;
    use model::MetadataOffset;

    use super::*;

    #[test]
    fn an_image_that_is_not_what_was_told_is_noticed() {
        let at = |offset, level| {
            let told = [MetadataRecord::FeatureLevel { name: "f".to_owned(), level }];
            MetadataImage::from_snapshot(MetadataOffset(offset), &told)
        };
        assert_eq!(compare(HostId(1), &at(4, 1), &at(4, 1)), None);
        assert!(compare(HostId(1), &at(4, 2), &at(4, 1)).is_some());
    }
}
