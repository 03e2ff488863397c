//! Builds kernel and servers and packs the boot image.

fn main() {}
