//! The management link between the root-task and the host command.
