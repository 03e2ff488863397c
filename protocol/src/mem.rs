//! What a client may ask of the mem-server.
