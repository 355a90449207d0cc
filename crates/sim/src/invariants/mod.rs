//! What must hold, one file each: while the cluster runs, and at the end.

mod acknowledged;
mod elections;
mod images;
mod leaders;
mod replicas;
mod watermarks;

pub use acknowledged::check_written;
pub use elections::{Observer, Seen, observe};
pub use images::check_images;
pub use leaders::Leaders;
pub use replicas::check_replicas;
pub use watermarks::Watermarks;
