//! The classic group protocol: who is in a group, and how a generation comes to be.
