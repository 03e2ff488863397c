//! A guest's console, driven as a user would: log in, type commands, read answers.

use crate::runner::Failure;
use ballast::session::Session;
use protocol::units::VmId;
use std::time::Duration;

/// Guard against a hang, in host time: never what a test measures.
pub const HANG: Duration = Duration::from_secs(300);

/// What a command printed and its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Text between command and marker.
    pub text: String,
    /// Exit status.
    pub status: u32,
}

/// A shell on a VM's console.
#[derive(Debug)]
pub struct Shell<'a> {
    session: &'a Session,
    vm: VmId,
    place: u64,
}

fn failure(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}

impl<'a> Shell<'a> {
    /// The console of `vm` from its first byte on.
    pub const fn new(session: &'a Session, vm: VmId) -> Self {
        Self { session, vm, place: 0 }
    }

    /// Forgets everything printed so far.
    pub fn skip(&mut self) {
        self.place = self.end();
    }

    fn end(&self) -> u64 {
        self.session.heard(|heard| heard.consoles.get(&self.vm.0).map_or(0, |c| c.end()))
    }

    /// Everything printed since the last step.
    pub fn pending(&self) -> String {
        self.session.heard(|heard| {
            let bytes = heard.consoles.get(&self.vm.0).map(|c| c.since(self.place).to_vec());
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        })
    }

    /// Waits until `found` accepts what was printed since the last step, then steps behind it.
    ///
    /// # Errors
    ///
    /// What was printed instead.
    pub fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Failure> {
        let (vm, place) = (self.vm.0, self.place);
        let result = self.session.wait(what, limit, |heard| {
            let bytes = heard.consoles.get(&vm)?.since(place);
            found(&String::from_utf8_lossy(bytes))
        });
        match result {
            Ok(value) => {
                self.place = self.end();
                Ok(value)
            }
            Err(error) => {
                let pending = self.pending();
                let tail: Vec<&str> = pending.lines().rev().take(15).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                Err(format!("{error}\n    console: {}", tail.join("\n    console: ")))
            }
        }
    }

    /// Types `text` and Enter.
    ///
    /// # Errors
    ///
    /// If the system has ended.
    pub fn type_line(&self, text: &str) -> Result<(), Failure> {
        self.session.type_in(self.vm, format!("{text}\n").as_bytes()).map_err(failure)
    }

    /// Waits for the login prompt and logs in as root.
    ///
    /// # Errors
    ///
    /// What was printed instead.
    pub fn log_in(&mut self) -> Result<(), Failure> {
        self.wait("login prompt", HANG, |text| text.contains("login:").then_some(()))?;
        self.type_line("root")?;
        self.wait("shell prompt", HANG, |text| text.contains("~# ").then_some(()))?;
        // Echo off and no prompt: only answers come back.
        self.run("stty -echo; PS1=").map(drop)
    }

    /// Waits for the shell in the initramfs, which asks for no login.
    ///
    /// # Errors
    ///
    /// What was printed instead.
    pub fn enter(&mut self) -> Result<(), Failure> {
        self.wait("shell prompt", HANG, |text| text.contains("/ # ").then_some(()))?;
        self.run("stty -echo; PS1=").map(drop)
    }

    /// Starts a command without waiting for its end.
    ///
    /// # Errors
    ///
    /// If the system has ended.
    pub fn start(&mut self, command: &str) -> Result<(), Failure> {
        self.skip();
        // The echo of this line has no digit between the colons, the answer has.
        self.type_line(&format!("{command}; echo END:$?:"))
    }

    /// Waits for the end of the command that was started.
    ///
    /// # Errors
    ///
    /// What was printed instead.
    pub fn finish(&mut self, limit: Duration) -> Result<Output, Failure> {
        self.wait("end of a command", limit, |text| {
            let (before, status) = text.match_indices("END:").find_map(|(at, _)| {
                let (status, _) = text.get(at + 4..)?.split_once(':')?;
                Some((text.get(..at)?, status.parse().ok()?))
            })?;
            Some(Output { text: before.replace('\r', ""), status })
        })
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    ///
    /// What was printed instead.
    pub fn run(&mut self, command: &str) -> Result<Output, Failure> {
        self.start(command)?;
        self.finish(HANG)
    }

    /// Runs a command that must succeed; what it printed.
    ///
    /// # Errors
    ///
    /// What it printed, if its status is not 0.
    pub fn expect(&mut self, command: &str) -> Result<String, Failure> {
        let output = self.run(command)?;
        if output.status == 0 {
            return Ok(output.text.trim().to_owned());
        }
        Err(format!("`{command}` ended with {}: {}", output.status, output.text.trim()))
    }
}
