//! Fixed capability slots of each server.
