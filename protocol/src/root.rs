//! What any server may ask of the root-task.
