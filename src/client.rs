//! A client of a running system's control socket.

use crate::Error;
use crate::session::{Ask, Attach, Line, control_socket, read_frame, refusal_text, run_folder};
use protocol::link::{self, FRAME_MAX, Request, ToHost, ToTarget};
use protocol::units::VmId;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

/// Name of the run that `ballast run` makes and other verbs look for.
pub const RUN: &str = "run";

/// A connection for requests.
#[derive(Debug)]
pub struct Client {
    stream: Mutex<UnixStream>,
}

/// Connects for `what`.
///
/// # Errors
///
/// [`Error::Input`] if no system runs.
pub fn connect(what: Attach) -> Result<UnixStream, Error> {
    let path = control_socket(&run_folder(RUN)?);
    let mut stream = UnixStream::connect(&path).map_err(|_| {
        Error::Input("no system runs here: start one with `./ballast run`".to_owned())
    })?;
    let mut buffer = [0; 64];
    let frame = link::encode(&what, &mut buffer).unwrap_or_default();
    stream.write_all(frame).map_err(Error::file(&path))?;
    Ok(stream)
}

impl Client {
    /// Connects to the system that `ballast run` runs.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] if none runs.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { stream: Mutex::new(connect(Attach::Requests)?) })
    }
}

impl Ask for Client {
    fn ask(&self, request: Request) -> Result<Vec<Line>, Error> {
        let ended = || Error::Crash("the system has ended or does not answer".to_owned());
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; FRAME_MAX];
        let message = ToTarget::Request { id: 0, request };
        let frame = link::encode(&message, &mut buffer)
            .ok_or_else(|| Error::Input("the request is too long for the link".to_owned()))?;
        stream.write_all(frame).map_err(|_| ended())?;
        let mut lines = Vec::new();
        loop {
            let mut frame = read_frame(&mut stream).ok_or_else(ended)?;
            match link::decode(&mut frame) {
                Some(ToHost::Row { row, .. }) => lines.push(row.into()),
                Some(ToHost::Done { outcome: Ok(()), .. }) => return Ok(lines),
                Some(ToHost::Done { outcome: Err(refusal), .. }) => {
                    return Err(Error::Wrong(refusal_text(refusal)));
                }
                _ => return Err(ended()),
            }
        }
    }
}

/// The id of the VM called `name`.
///
/// # Errors
///
/// [`Error::Input`] with the names there are.
pub fn find_vm(asked: &impl Ask, name: &str) -> Result<VmId, Error> {
    let mut names = Vec::new();
    for line in asked.ask(Request::VmList)? {
        if let Line::Vm { vm, name: found, .. } = line {
            if found == name {
                return Ok(vm);
            }
            names.push(found);
        }
    }
    Err(Error::Input(format!("no VM is called '{name}': there are {}", names.join(", "))))
}
