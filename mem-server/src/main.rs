//! Edge of the mem-server: receives calls, faults and signals, and hands them to the library.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    not(target_os = "none"),
    expect(dead_code, reason = "on the host the edge is only type-checked")
)]

mod edge {
    pub mod boot;
    pub mod calls;
    pub mod entropy;
    pub mod serve;
    pub mod view;
}

use protocol::startup::{Role, Startup};

#[cfg(target_os = "none")]
runtime::server!(start);

#[cfg(not(target_os = "none"))]
fn main() {}

fn start(startup: Startup) -> ! {
    let Role::Mem(given) = &startup.role else { unreachable!("started as another server") };
    match edge::boot::start(&startup, given) {
        Ok(running) => edge::serve::serve(running),
        Err(edge::boot::StartError::NoMemory) => unreachable!("too little memory to start"),
        Err(edge::boot::StartError::Kernel(what, error)) => {
            unreachable!("{what}: kernel error {}", error.number())
        }
    }
}
