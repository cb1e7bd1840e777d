//! This node's role, lease and fence.
