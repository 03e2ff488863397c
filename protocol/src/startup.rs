//! The startup page: what a server is told when it starts.
