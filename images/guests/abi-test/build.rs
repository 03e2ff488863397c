//! Links the root task at 0x400000.

include!("../../../runtime/link.rs");

fn main() {
    link("link.ld", &[]);
}
