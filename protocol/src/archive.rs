//! The boot archive: what the builder appends to the root-task.
