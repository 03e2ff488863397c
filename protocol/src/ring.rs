//! Rings in shared memory: block requests, console bytes, log frames.
