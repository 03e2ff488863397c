//! Links the guest at 1 MiB, where a PVH loader puts it.

include!("../../../runtime/link.rs");

fn main() {
    link("../bare/guest.ld", &[]);
}
