//! An attached console: the terminal in raw mode, bytes both ways until the detach key.

use crate::Error;
use crate::client::connect;
use crate::session::Attach;
use protocol::units::VmId;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{Read, Write, stdin, stdout};
use std::net::Shutdown;

/// Ctrl-], as `virsh` and `xl` use it.
const DETACH: u8 = 0x1d;

/// The terminal in raw mode while it lives.
struct RawMode(Option<Termios>);

impl RawMode {
    fn enter() -> Self {
        let input = stdin();
        let saved = if isatty(&input) { tcgetattr(&input).ok() } else { None };
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            let _ = tcsetattr(&input, OptionalActions::Now, &raw);
        }
        Self(saved)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, saved);
        }
    }
}

/// Attaches to the console of `vm`, called `name`, until the detach key, end of input or the end
/// of the system.
///
/// # Errors
///
/// [`Error::Input`] if no system runs.
pub fn attach(vm: VmId, name: &str) -> Result<(), Error> {
    let stream = connect(Attach::Console(vm))?;
    println!("-- console of {name}: Ctrl-] leaves --\r");
    let raw = RawMode::enter();
    let mut output = stream.try_clone().map_err(Error::file("console"))?;
    let printer = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = output.read(&mut buffer)
            && length > 0
        {
            let mut screen = stdout().lock();
            let _ = screen.write_all(buffer.get(..length).unwrap_or_default());
            let _ = screen.flush();
        }
    });
    let mut input = stream.try_clone().map_err(Error::file("console"))?;
    // Not joined: it may sit in a read of the terminal, which ends with the process or next key.
    let mut bytes = [0; 256];
    let mut keyboard = stdin();
    loop {
        if printer.is_finished() {
            break;
        }
        if !readable(&keyboard) {
            continue;
        }
        let length = keyboard.read(&mut bytes).unwrap_or(0);
        let typed = bytes.get(..length).unwrap_or_default();
        let end = typed.iter().position(|&byte| byte == DETACH);
        let sent = input.write_all(typed.get(..end.unwrap_or(length)).unwrap_or_default());
        if end.is_some() || sent.is_err() {
            break;
        }
        if length == 0 {
            // End of a script's input: let the guest's last words come through.
            std::thread::sleep(std::time::Duration::from_secs(1));
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    let _ = printer.join();
    drop(raw);
    println!("\n-- left the console of {name} --");
    Ok(())
}

/// Waits a moment for input; whether there is some.
fn readable(input: &std::io::Stdin) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(input, PollFlags::IN)];
    let moment = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    poll(&mut polled, Some(&moment)).is_ok_and(|ready| ready > 0)
}
