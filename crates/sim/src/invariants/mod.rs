//! What must hold, one file each: while the cluster runs, and at the end.

mod acknowledged;
mod elections;
mod images;
mod keyed;
mod leaders;
mod offsets;
mod owners;
mod replicas;
mod transactions;
mod watermarks;
mod zombies;

pub use acknowledged::check_written;
pub use elections::{Observer, Seen, observe};
pub use images::check_images;
pub use keyed::check_keyed;
pub use leaders::Leaders;
pub use offsets::{Offsets, check_offsets};
pub use owners::Owners;
pub use replicas::check_replicas;
pub use transactions::{Attempt, Attempts, Id, check_transactions, value};
pub use watermarks::Watermarks;
pub use zombies::Grants;
