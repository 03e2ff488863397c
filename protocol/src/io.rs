//! What a client may ask of the io-sched-server.
