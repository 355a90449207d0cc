//! Idempotent producers of one partition (`R40`, `R41`).
