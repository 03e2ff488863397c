//! The host command.

fn main() {
    println!("ballast");
}
