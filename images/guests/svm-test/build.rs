//! Links the program where root tasks live: 4 MiB.

include!("../../../runtime/link.rs");

fn main() {
    link("svm-test.ld", &[]);
}
