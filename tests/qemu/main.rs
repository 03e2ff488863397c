//! Boots QEMU and checks what a user sees. Words on the command line choose groups.
#![forbid(unsafe_code)]

mod bochs;
mod boot;
mod command;
mod disk;
mod isolation;
mod large;
mod memory;
mod model;
mod no_apic;
mod overcommit;
mod reproduce;
mod root_task;
mod storm;
mod striped;
mod swap_errors;
mod system;
mod working_set;
mod write_back;

use std::process::ExitCode;
use tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    command::run(&mut runner);
    root_task::run(&mut runner);
    bochs::run(&mut runner);
    isolation::run(&mut runner);
    no_apic::run(&mut runner);
    model::run(&mut runner);
    system::run(&mut runner);
    overcommit::run(&mut runner);
    memory::run(&mut runner);
    storm::run(&mut runner);
    striped::run(&mut runner);
    swap_errors::run(&mut runner);
    working_set::run(&mut runner);
    write_back::run(&mut runner);
    reproduce::run(&mut runner);
    if runner.finish() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
