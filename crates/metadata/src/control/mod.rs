//! How the cluster may change: what is asked of the active controller, and what it answers.
pub mod messages;

pub use messages::*;
