//! The experiment that runs in QEMU: it is reproduced, and repeats itself. The others are tested with the harness.

use ballast::reproduce::{Kind, run as reproduce};
use tests::runner::{Failure, Runner};

/// What the experiment prints; an error if its claim does not hold or its control does.
fn printed() -> Result<String, Failure> {
    let mut text = Vec::new();
    reproduce(&["P4-E5".to_owned()], Kind::Modelled, true, None, &mut text)
        .map_err(|error| format!("{error}\n{}", String::from_utf8_lossy(&text)))?;
    String::from_utf8(text).map_err(|error| error.to_string())
}

/// Runs the group.
pub fn run(runner: &mut Runner) {
    if !runner.wants("reproduce") {
        return;
    }
    runner.case("reproduce: P4-E5 holds, its control fails, and two runs print the same", || {
        let (first, second) = (printed()?, printed()?);
        if first == second { Ok(()) } else { Err(format!("{first}\nand then\n{second}")) }
    });
}
